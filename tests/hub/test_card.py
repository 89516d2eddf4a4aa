from __future__ import annotations

import re
import shutil
from dataclasses import replace

from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from sd_ext.hub import read_finished, stage
from sd_ext.hub.base import Base
from sd_ext.hub.card import cell, code_span, literal, make_card, public_settings

HUB = Base(hub_id="someone/base", licence={"license": "mit"})


def python_of(card: str) -> str:
    (code,) = re.findall(r"^```python\n(.*?)\n```$", card, re.MULTILINE | re.DOTALL)
    return code


def test_the_metadata_reads_back(finished, tmp_path):
    make_card(read_finished(finished), HUB, "alice/brush").save(tmp_path / "README.md")
    assert ModelCard.load(tmp_path / "README.md").data.to_dict() == {
        "base_model": "someone/base",
        "base_model_relation": "adapter",
        "instance_prompt": "a <brush> picture",
        "license": "mit",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": [
            "text-to-image",
            "lora",
            "diffusers",
            "diffusers-training",
            "stable-diffusion",
            "template:diffusion-lora",
        ],
        "widget": [
            {"text": 'a `red` apple | "twice"', "output": {"url": "samples/0000.png"}},
            {"text": "<brush> moon", "output": {"url": "samples/0001.png"}},
        ],
    }


def test_a_reader_finds_everything(finished):
    text = make_card(read_finished(finished), HUB, "alice/brush").text
    for wanted in (
        "<Gallery />",
        "[someone/base](https://huggingface.co/someone/base) (Stable Diffusion 1.x)",
        "200 steps on 20 pictures with sd_ext 0.1.0",
        "`a <brush> picture`",
        "<lora:brush_kohya:1>",
        "`embedding:brush`",
        "](samples/sheet.png)",
        "](validation.png)",
        "0.5 at step 0, 0.3 at step 200; the lowest, 0.25, was at step 100",
        "| `learning_rate` | 0.0001 |",
        "| `noise.offset` | 0.05 |",
        "`mit`, as the card of the base model states.",
    ):
        assert wanted in text
    assert "\n\n\n" not in text.strip()


def test_settings_that_name_a_place_are_not_there(finished):
    settings = read_finished(finished).settings
    assert {"data", "class_data", "cache_dir"} <= settings.keys()
    assert [name for name, _ in public_settings(settings)] == [
        "learning_rate",
        "rank",
        "targets",
        "flip",
        "noise.offset",
    ]
    assert not list(public_settings({"resume": "last", "teacher": "models/mine", "list": [r"C:\x"], "a": {"out": "o"}}))


def test_nothing_but_the_least(plain):
    card = make_card(read_finished(plain), Base(why="reasons"), "alice/brush")
    assert card.data.to_dict().keys() == {"library_name", "pipeline_tag", "tags"}
    assert "Gallery" not in card.text
    assert "the trainer's machine, so this card links to none" in card.text
    assert not re.search(r"None|\[\]|\{|\}|Pictures|Words|samples", card.text)
    assert "\n\n\n" not in card.text.strip()


def test_stable_diffusion_xl(finished):
    run = replace(read_finished(finished), family="sdxl")
    assert "stable-diffusion-xl" in make_card(run, HUB, "alice/brush").data.tags


def test_a_picture_without_a_prompt_is_shown(finished):
    run = replace(read_finished(finished), prompts=("one",), seeds=())
    card = make_card(run, HUB, "alice/brush")
    assert [entry["text"] for entry in card.data.widget] == ["one", "-"]


def draw(code: str) -> bytes:
    """The picture that the card's Python draws, in a few steps."""
    names: dict = {}
    exec(code.replace(").images", ", num_inference_steps=2, output_type='np').images"), names)
    names["pipe"].set_progress_bar_config(disable=True)
    return names["image"].tobytes()


def test_the_cards_python_runs(finished, tiny_pipeline_dir, tmp_path, monkeypatch):
    staged = stage(finished, tmp_path / "staged", "alice/brush")
    code = python_of((staged / "README.md").read_text())
    code = code.replace('"someone/base"', repr(str(tiny_pipeline_dir)))
    code = code.replace('weights("alice/brush"', f'weights("{staged}"')
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name: str(staged / name))
    drawn = draw(code)
    assert drawn == draw(code)
    without = re.sub(r"pipe\.load_lora.*\n", "", code)
    assert without != code
    assert drawn != draw(without)


def test_python_for_what_diffusers_cannot_read(lokr_out, tiny_pipeline_dir, tmp_path, monkeypatch):
    staged = stage(lokr_out, tmp_path / "staged", "alice/brush")
    text = (staged / "README.md").read_text()
    assert "pytorch_lora_weights" not in text
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda repo, name: str(staged / name))
    code = python_of(text).replace('"someone/base"', repr(str(tiny_pipeline_dir)))
    assert draw(code) != draw(re.sub(r"\napply_lora.*", "", code))


def test_python_for_the_embedded_model_runs_as_it_stands(out, edit, tmp_path, monkeypatch):
    """A stranger who has sd_ext has the base model too."""
    import sd_ext

    edit(base_model=str(sd_ext.pretrained_path()), tokens=None)
    (out / "model" / "learned_embeds.safetensors").unlink()
    staged = stage(out, tmp_path / "staged", "alice/brush")
    card = ModelCard.load(staged / "README.md")
    assert card.data.license == "apache-2.0"
    assert card.data.get("base_model") is None
    code = python_of(str(card))
    assert draw(re.sub(r"pipe\.load_lora.*\n", "", code))  # the tiny LoRA fits the tiny pipeline only


def test_python_for_other_bases(finished):
    run = read_finished(finished)
    embedded = python_of(str(make_card(run, Base(embedded=True), "alice/brush")))
    assert embedded.startswith("import sd_ext\n")
    assert "base = sd_ext.pretrained_path()" in embedded
    local = python_of(str(make_card(run, Base(why="reasons"), "alice/brush")))
    assert 'base = "..."  # the folder of the base model' in local
    for code in (embedded, local):
        compile(code, "card", "exec")


def test_two_text_encoders(out):
    model = out / "model"
    shutil.copyfile(model / "learned_embeds.safetensors", model / "learned_embeds_2.safetensors")
    run = replace(read_finished(out), family="sdxl")
    text = str(make_card(run, HUB, "alice/brush"))
    code = python_of(text)
    compile(code, "card", "exec")
    assert "text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)" in code
    assert "text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)" in code
    assert "new words load in Diffusers only" in text


@given(st.text(st.characters(codec="utf-8")))
def test_text_cannot_leave_its_place(text):
    assert eval(literal(text)) == text
    assert "`" not in literal(text)
    assert "\n" not in literal(text)
    span = code_span(text)
    fence = re.match("`+", span)[0]
    assert fence not in span[len(fence) : -len(fence)]
    assert len(re.findall(r"(?<!\\)(?:\\\\)*\|", cell(text))) == 0
    assert len(cell(text).splitlines()) <= 1
