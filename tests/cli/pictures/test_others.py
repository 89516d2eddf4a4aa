"""Other programs read our pictures, and theirs are read here."""

from __future__ import annotations

import dataclasses
import json
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sd_ext.cli.pictures import KEY, Record, encode, read_record, read_told
from sd_ext.cli.pictures import a1111 as text_of_a1111
from sd_ext.cli.request import Recipe
from sd_ext.errors import InputError

RECIPE = Recipe(
    prompt="(red:1.2) apple, at dusk\nof 日本 🍎",
    negative="blue, text: none",
    seed=2**40,
    model="folder/My Model: a, b",
    sampler="dpm++ 2m",
    grid="karras",
    steps=12,
    guidance=4.5,
    size="64x96",
    device="cpu",
    dtype="float32",
)
RECORD = Record(RECIPE, {"software": "sd_ext test", "sampler": "dpm++ 2m", "grid": "karras", "batch": 3, "place": 1})
PICTURE = Image.radial_gradient("L").resize((64, 96)).convert("RGB")
FORMATS = "png", "jpeg", "webp"


@pytest.fixture(params=FORMATS)
def ours(request, tmp_path):
    """A picture of ours in each format."""
    path = tmp_path / f"a.{request.param}"
    path.write_bytes(encode(PICTURE, RECORD, request.param))
    return path


def test_every_format_gives_the_record_back(ours):
    assert read_record(ours) == RECORD
    with Image.open(ours) as stored:
        assert stored.format.lower() == ours.suffix[1:]
        if stored.format != "JPEG":
            assert stored.convert("RGB").tobytes() == PICTURE.tobytes()


def test_sd_parsers_reads_ours(ours):
    parsers = pytest.importorskip("sd_parsers", reason="needs sd-parsers (extra `test`)")
    told = parsers.ParserManager().parse(ours)
    assert told is not None and told.generator.value == "AUTOMATIC1111"
    (sampler,) = told.samplers
    assert [prompt.value for prompt in sampler.prompts] == [RECIPE.prompt]
    assert [prompt.value for prompt in sampler.negative_prompts] == [RECIPE.negative]
    assert (sampler.name, sampler.model.name) == ("DPM++ 2M", "My Model_ a_ b")
    said = {"scheduler": "Karras", "steps": "12", "cfg_scale": "4.5", "seed": str(2**40)}
    assert sampler.parameters == said


def test_sd_prompt_reader_reads_ours(ours, caplog):
    reason = "needs sd-prompt-reader: pip install --no-deps sd-prompt-reader piexif"
    reader = pytest.importorskip("sd_prompt_reader.image_data_reader", reason=reason)
    caplog.set_level(logging.CRITICAL)
    told = reader.ImageDataReader(ours)
    assert told.status.name == "READ_SUCCESS" and told.tool == "A1111 webUI"
    assert (told.positive, told.negative) == (RECIPE.prompt, RECIPE.negative)
    assert (told.width, told.height) == ("64", "96")
    assert told.parameter == {
        "model": "My Model_ a_ b", "sampler": "DPM++ 2M", "seed": str(2**40), "cfg": "4.5", "steps": "12",
        "size": "64x96",
    }  # fmt: skip


def test_a_prompt_that_looks_like_settings_stays_a_prompt():
    """Readers search for these words anywhere; what stands before them is the prompt."""
    reader = pytest.importorskip("sd_prompt_reader.format", reason="needs sd-prompt-reader")
    parsers = pytest.importorskip("sd_parsers", reason="needs sd-parsers")
    hostile = dataclasses.replace(RECIPE, prompt="x\nSteps: 1, Sampler: no, Seed: 3\nNegative prompt: y", negative="z")
    text = text_of_a1111.parameters(Record(hostile))
    one = reader.A1111(raw=text)
    one.parse()
    assert one.negative == "z" and one.parameter["steps"] == "12"
    other = parsers.parsers.AUTOMATIC1111Parser().parse({"parameters": text})
    (sampler,) = other.samplers
    assert [prompt.value for prompt in sampler.negative_prompts] == ["z"]
    assert sampler.parameters["steps"] == "12"


@given(
    prompt=st.text(st.characters(codec="utf-8", exclude_characters="\r"), min_size=1).map(str.strip).filter(bool),
    seed=st.integers(0, 2**63 - 1),
    steps=st.integers(1, 1000),
)
def test_our_text_comes_back_from_our_own_reading(prompt, seed, steps):
    recipe = dataclasses.replace(RECIPE, prompt=prompt, seed=seed, steps=steps)
    told = text_of_a1111.parse(text_of_a1111.parameters(Record(recipe)))
    assert told.settings.items() >= {"seed": seed, "steps": steps, "size": "64x96", "guidance": 4.5}.items()
    if "Negative prompt:" not in prompt and "Steps:" not in prompt:
        assert told.settings["prompt"] == prompt


THEIRS = (
    "masterpiece, (cat:1.2) <lora:fur:0.8>\nsecond line\nNegative prompt: dog, bad\n"
    'Steps: 25, Sampler: {sampler}, {schedule}CFG scale: 6.5, Seed: 99, Size: 512x768, Model hash: abcdef1234, '
    'Model: dreamer, Clip skip: 2, Lora hashes: "fur: 0123, other: 4567", Version: v1.10.1'
)  # fmt: skip


@pytest.mark.parametrize(
    ("sampler", "schedule", "ours"),
    [
        ("DPM++ 2M", "Schedule type: Karras, ", ("dpm++ 2m", "karras")),
        ("DPM++ 2M Karras", "", ("dpm++ 2m", "karras")),  # before 2024
        ("UniPC", "Schedule type: Automatic, ", ("unipc 3 bh1", None)),
        ("Euler a", "Schedule type: SGM Uniform, ", ("euler a", "sgm_uniform")),
        ("Euler a", "Schedule type: Beta, ", ("euler a", "beta_sigmas")),
        ("Euler a", "Schedule type: Align Your Steps, ", ("euler a", "ays_11")),
        ("DPM adaptive", "", (None, None)),
    ],
)
def test_pictures_of_automatic1111(tmp_path, sampler, schedule, ours):
    text = THEIRS.format(sampler=sampler, schedule=schedule)
    chunks, exif = PngInfo(), Image.Exif()
    chunks.add_text("parameters", text)
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + text.encode("utf-16-be")
    PICTURE.save(tmp_path / "a.png", pnginfo=chunks)
    PICTURE.save(tmp_path / "a.jpg", exif=exif)
    PICTURE.save(tmp_path / "a.webp", exif=exif)
    for name in ("a.png", "a.jpg", "a.webp"):
        told = read_told(tmp_path / name)
        assert told.program == "AUTOMATIC1111"
        assert told.settings["prompt"] == "masterpiece, (cat:1.2) \nsecond line"
        assert told.shown["prompt"] == "masterpiece, (cat:1.2) <lora:fur:0.8>\nsecond line"
        assert told.settings["negative"] == "dog, bad"
        numbers = {"steps": 25, "guidance": 6.5, "seed": 99, "size": "512x768", "clip_skip": 2}
        assert told.settings.items() >= numbers.items()
        assert (told.settings.get("sampler"), told.settings.get("grid")) == ours
        if ours[0]:
            assert told.settings["like"] == ("a1111" if schedule else "a1111_1_8")
        assert told.shown["Lora hashes"] == "fur: 0123, other: 4567"
        dropped = {"Model dreamer", "LoRA fur 0.8"}
        assert dropped <= set(told.dropped)
        assert ("Sampler DPM adaptive" in told.dropped) == (ours[0] is None)
        with pytest.raises(InputError, match=r"AUTOMATIC1111.*--from"):
            read_record(tmp_path / name)


def test_loras_and_clip_skip_are_told_to_others():
    recipe = dataclasses.replace(RECIPE, lora=("my/fur.safetensors:0.8", "owner/style"), clip_skip=2)
    text = text_of_a1111.parameters(Record(recipe))
    assert "<lora:fur:0.8> <lora:style:1>\nNegative prompt:" in text and ", Clip skip: 2, " in text
    told = text_of_a1111.parse(text)
    assert (told.settings["prompt"], told.settings["clip_skip"]) == (RECIPE.prompt, 2)
    assert {"LoRA fur 0.8", "LoRA style 1"} <= set(told.dropped)


def test_a1111_texts_without_settings():
    assert text_of_a1111.parse("only words").settings == {"prompt": "only words"}
    assert text_of_a1111.parse("Negative prompt: x\nSteps: 3, Seed: many").dropped == ["Seed many"]


GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 7, "steps": 20, "cfg": 8.0, "sampler_name": "dpmpp_2m", "scheduler": "karras", "denoise": 1.0,
        "model": ["10", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["10", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": ["11", 0], "clip": ["10", 1]}},
    "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
    "10": {"class_type": "LoraLoader", "inputs": {"lora_name": "fur.safetensors", "model": ["4", 0], "clip": ["4", 1]}},
    "11": {"class_type": "PrimitiveString", "inputs": {"value": "a dog"}},
}  # fmt: skip


def comfy(tmp_path, graph) -> object:
    chunks = PngInfo()
    chunks.add_text("prompt", graph if isinstance(graph, str) else json.dumps(graph))
    chunks.add_text("workflow", "{}")
    PICTURE.save(tmp_path / "a.png", pnginfo=chunks)
    return read_told(tmp_path / "a.png")


def test_pictures_of_comfyui(tmp_path):
    told = comfy(tmp_path, GRAPH)
    assert told.program == "ComfyUI"
    assert told.settings == {
        "prompt": "a cat", "negative": "a dog", "seed": 7, "steps": 20, "guidance": 8.0, "sampler": "dpmpp_2m",
        "grid": "karras", "size": "512x640",
    }  # fmt: skip
    assert set(told.dropped) == {"model sd15.safetensors", "LoRA fur.safetensors"}
    exif = Image.Exif()
    exif[0x010F] = "prompt:" + json.dumps(GRAPH)  # as ComfyUI writes it into WebP
    PICTURE.save(tmp_path / "a.webp", exif=exif)
    assert read_told(tmp_path / "a.webp") == told


def test_the_last_of_two_samplers_is_told(tmp_path):
    second = {
        "class_type": "KSampler",
        "inputs": {**GRAPH["3"]["inputs"], "seed": 8, "denoise": 0.5, "latent_image": ["3", 0]},
    }
    told = comfy(tmp_path, {**GRAPH, "12": second})
    assert told.settings["seed"] == 8
    assert {"denoise 0.5", "1 further samplers"} <= set(told.dropped)


@pytest.mark.parametrize("graph", ["[1]", "{", "3", '{"3": 4}', '{"3": {"class_type": 1, "inputs": {}}}'])
def test_what_is_no_graph_is_refused(tmp_path, graph):
    with pytest.raises(InputError, match=r"a\.png"):
        comfy(tmp_path, graph)


def test_graphs_that_go_in_circles_end(tmp_path):
    graph = {"1": {"class_type": "KSampler", "inputs": {"positive": ["2", 0], "steps": ["1", 0]}},
             "2": {"class_type": "X", "inputs": {"text": ["1", 0]}}}  # fmt: skip
    assert comfy(tmp_path, graph).settings == {}


def test_words_too_long_for_a_jpeg(tmp_path):
    from sd_ext.cli.pictures import check_room

    check_room("png", "x" * 100_000)
    with pytest.raises(InputError, match="choose png"):
        check_room("jpeg", "🍎" * 8_001)
    longest = dataclasses.replace(RECIPE, prompt="🍎" * 8_000, negative="")
    (tmp_path / "a.jpg").write_bytes(encode(PICTURE, Record(longest), "jpeg"))
    assert read_record(tmp_path / "a.jpg").recipe == longest


@pytest.mark.parametrize("form", FORMATS)
def test_damaged_files_are_one_sentence(tmp_path, form):
    whole = encode(PICTURE, RECORD, form)
    place = whole.index(KEY.encode())
    for cut in (0, 1, 5, 12, 20, place, place + 20):
        (tmp_path / "a").write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"a cannot be read|does not say"):
            read_told(tmp_path / "a")
