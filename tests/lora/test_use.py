"""LoRA files in use in a pipeline: as peft computes them, and gone without a trace."""

from __future__ import annotations

import logging

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

import sd_ext
from sd_ext.errors import InputError
from sd_ext.lora import Lora, Strength, find_lora, save_lora
from sd_ext.lora.find import check_lora
from tests.conftest import build_tiny_pipeline

from . import tiny


@pytest.fixture(scope="module")
def pipe():
    """Of this file's own: its weights change, and must be what they were after each test."""
    return build_tiny_pipeline()


@pytest.fixture(autouse=True)
def _weights_are_restored_to_the_bit(pipe):
    before = tiny.weights(pipe)
    yield
    after = tiny.weights(pipe)
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A kohya file of each kind."""
    folder = tmp_path_factory.mktemp("loras")
    for kind in tiny.KINDS:
        save_lora(tiny.trained(kind)[1], folder / f"{kind}.safetensors", "kohya")
    return folder


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_kind_draws_what_peft_draws(pipe, files, kind):
    peft, _ = tiny.trained(kind)
    expected, plain = tiny.latents(peft), tiny.latents(pipe)
    assert (expected - plain).abs().max() > 0.01
    with sd_ext.use_lora(pipe, files / f"{kind}.safetensors") as used:
        assert used.unused == []
        torch.testing.assert_close(tiny.latents(pipe), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    assert torch.equal(tiny.latents(pipe), plain)


def test_strengths_of_unet_and_text_encoder_interpolate(pipe, files):
    start = tiny.weights(pipe)
    for kind in ("dora", "loha"):
        with sd_ext.use_lora(pipe, str(files / f"{kind}.safetensors")):
            full = tiny.weights(pipe)
        with sd_ext.use_lora(pipe, [(files / f"{kind}.safetensors", 0.5, 0.25)]):
            part = tiny.weights(pipe)
        for name in start:
            share = 0.25 if name.startswith("text_encoder") else 0.5
            torch.testing.assert_close(part[name], start[name] + share * (full[name] - start[name]))


def test_several_add_up_whatever_their_order(pipe, files):
    start, changes = tiny.weights(pipe), {}
    entries = [(files / "lora.safetensors", 0.5), (tiny.trained("lokr")[1], -1.0)]
    for number, entry in enumerate(entries):
        with sd_ext.use_lora(pipe, entry):
            changes[number] = {name: weight - start[name] for name, weight in tiny.weights(pipe).items()}
    for order in (entries, entries[::-1]):
        with sd_ext.use_lora(pipe, order):
            both = tiny.weights(pipe)
        for name in start:
            torch.testing.assert_close(both[name], start[name] + changes[0][name] + changes[1][name])


def test_others_take_the_place_of_those_in_use(pipe, files):
    start = tiny.weights(pipe)
    entries = [(files / "dora.safetensors", 0.5), (files / "loha.safetensors", Strength(0.5, 0.2, "OUTALL"))]
    with sd_ext.use_lora(pipe, entries):
        expected = tiny.weights(pipe)
    with sd_ext.use_lora(pipe, files / "lora.safetensors") as used:
        first = tiny.weights(pipe)
        used.change(entries)
        assert all(torch.equal(weight, expected[name]) for name, weight in tiny.weights(pipe).items())
        for wrong, complaint in (
            (files / "none.safetensors", "no such LoRA"),
            ((tiny.trained("lora")[1], 1e300), "choose a smaller strength"),
            ((tiny.trained("lora")[1], float("nan")), "finite"),
            ((tiny.trained("lora")[1], Strength(blocks=",".join("1" * 12))), "not for this model"),
        ):
            with pytest.raises(InputError, match=complaint):
                used.change(wrong)
            assert all(torch.equal(weight, expected[name]) for name, weight in tiny.weights(pipe).items())
        used.change(files / "lora.safetensors")
        assert all(torch.equal(weight, first[name]) for name, weight in tiny.weights(pipe).items())
    assert all(torch.equal(weight, start[name]) for name, weight in tiny.weights(pipe).items())


def test_every_standard_pipeline_can_use_what_diffusers_does_not_load(pipe, files):
    with sd_ext.use_lora(pipe, (files / "dora.safetensors", 0.5)):
        expected = tiny.weights(pipe)
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    control = {"controlnet": diffusers.ControlNetModel.from_unet(pipe.unet)}
    for name, more in {
        "Img2Img": {}, "Inpaint": {}, "InstructPix2Pix": {}, "PAG": {}, "ControlNet": control,
        "ControlNetImg2Img": control, "ControlNetInpaint": control,
    }.items():  # fmt: skip
        other = getattr(diffusers, f"StableDiffusion{name}Pipeline")(**parts, **more)
        with sd_ext.use_lora(other, (files / "dora.safetensors", 0.5)):
            assert all(torch.equal(weight, expected[key]) for key, weight in tiny.weights(other).items()), name
    models = {"unet": pipe.unet, "text_encoder": pipe.text_encoder, "text_encoder_2": None}
    rest = {"vae": None, "tokenizer": None, "tokenizer_2": None, "scheduler": pipe.scheduler}
    for name in ("", "Img2Img", "Inpaint", "InstructPix2Pix", "PAG"):
        large = getattr(diffusers, f"StableDiffusionXL{name}Pipeline")(**models, **rest)
        with sd_ext.use_lora(large, (files / "dora.safetensors", 0.5)):
            assert all(torch.equal(weight, expected[key]) for key, weight in tiny.weights(large).items()), name


def test_undo_twice_and_half_precision(files):
    pipe = build_tiny_pipeline().to(torch.bfloat16)
    before = tiny.weights(pipe)
    used = sd_ext.use_lora(pipe, [files / "lora.safetensors"])
    assert any(not torch.equal(weight, before[name]) for name, weight in tiny.weights(pipe).items())
    used.undo()
    used.undo()
    assert all(torch.equal(weight, before[name]) for name, weight in tiny.weights(pipe).items())


def test_what_a_model_does_not_have_is_named_and_left_out(pipe, files, tmp_path, caplog):
    lora = tiny.trained("lora")[1]
    some = next(iter(lora.adapters.values()))
    for gone in ("mid_block.nothing", "mid_block.no_such", "up_blocks.9.a", "up_blocks.9.b"):
        lora = Lora({**lora.adapters, ("unet", gone): some})
    with caplog.at_level(logging.WARNING), sd_ext.use_lora(pipe, lora) as used:
        torch.testing.assert_close(tiny.latents(pipe), tiny.latents(tiny.trained("lora")[0]), rtol=1e-4, atol=1e-4)
    (sentence,) = used.unused
    assert sentence.startswith(
        f"the LoRA: 4 of its {len(lora)} modules are not in this model and are left out: unet.mid"
    )
    assert sentence.endswith("…")
    assert [record.message for record in caplog.records] == [sentence]


def test_words_in_the_file_can_be_used(pipe, files, tmp_path):
    tensors = load_file(files / "lora.safetensors")
    save_file({**tensors, "bundle_emb.cat.string_to_param.*": torch.ones(2, 32)}, tmp_path / "words.safetensors")
    before = sd_ext.encode_prompt(pipe, "cat")["prompt_embeds"]
    with sd_ext.use_lora(pipe, (tmp_path / "words.safetensors", 0.0)) as used:
        assert used.unused == []
        assert not torch.equal(sd_ext.encode_prompt(pipe, "cat")["prompt_embeds"], before)
    assert torch.equal(sd_ext.encode_prompt(pipe, "cat")["prompt_embeds"], before)
    save_file({**tensors, "bundle_emb.cat.string_to_param.*": torch.ones(2, 48)}, tmp_path / "wide.safetensors")
    with sd_ext.use_lora(pipe, tmp_path / "wide.safetensors") as used:
        assert "width 48" in used.unused[0]
        assert used.unused[0].endswith("its words are left out: cat")


def test_words_beside_the_file_are_named(pipe, tmp_path):
    save_lora(tiny.trained("lora")[1], tmp_path / "pytorch_lora_weights.safetensors", "diffusers")
    save_file({"cat": torch.ones(1, 32)}, tmp_path / "learned_embeds.safetensors")
    with sd_ext.use_lora(pipe, tmp_path) as used:
        assert "--embedding" in used.unused[0]


def test_what_does_not_fit_is_refused_and_nothing_changes(pipe, sdxl, files, tmp_path):
    with pytest.raises(InputError, match=r"the LoRA does not fit.*it is for Stable Diffusion XL"):
        sd_ext.use_lora(pipe, sdxl.lora)
    for entry, message in [
        ((files / "lora.safetensors", float("nan")), "give one or two finite numbers"),
        ((files / "lora.safetensors", 1e60), "choose a smaller strength"),
        (files / "none.safetensors", "no such LoRA"),
        ([(files / "lora.safetensors", 1.0), files / "none.safetensors"], "no such LoRA"),
    ]:
        with pytest.raises(InputError, match=message):
            sd_ext.use_lora(pipe, entry)


def test_offloaded_weights_are_refused(files):
    pipe = build_tiny_pipeline()
    pipe.unet.to("meta")
    with pytest.raises(InputError, match="before offloading is switched on"):
        sd_ext.use_lora(pipe, files / "lora.safetensors")


def test_a_repository_on_the_hub(files, tmp_path, monkeypatch):
    asked = []

    def snapshot(name, **patterns):
        asked.append((name, patterns["ignore_patterns"]))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, file: str(files / file))
    for name in ("a", "b"):
        save_lora(tiny.trained("lora")[1], tmp_path / f"{name}.safetensors", "kohya")
    with pytest.raises(InputError, match=r"holds 2 files; name one as some/one/FILE: a\.safetensors, b\.safetensors"):
        find_lora("some/one")
    (tmp_path / "a.safetensors").unlink()
    assert len(find_lora("some/one")) == len(find_lora("some/one/loha.safetensors")) == len(tiny.trained("lora")[1])
    assert asked == [("some/one", ["*/*"])] * 2


def test_what_is_not_there_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.pt").write_bytes(b"")
    for source, message in [
        ("some/one", "neither a file here nor a LoRA on the Hub"),
        ("some/one.safetensors", "no such LoRA: some/one.safetensors"),
        ("a/b/c", "no such LoRA: a/b/c"),
        ("x.pt", "is a pickle"),
    ]:
        with pytest.raises(InputError, match=message):
            find_lora(source)
    check_lora("some/one")  # may be on the Hub
