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
    seed=st.integers(0, 2**64 - 1),
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


def test_what_extensions_write_below_the_settings_is_named():
    text = (
        "a red apple\non a table\nNegative prompt: blurry\nugly\nSteps: 20, Sampler: Euler a, Seed: 5, Size: 64x32\n"
        "Template: a {red|blue}\n  apple\nNegative Template: ugly"
    )
    told = text_of_a1111.parse(text)
    assert told.settings["prompt"] == "a red apple\non a table" and told.settings["negative"] == "blurry\nugly"
    assert (told.settings["steps"], told.settings["seed"], told.settings["size"]) == (20, 5, "64x32")
    assert told.dropped == ["Template", "Negative Template"]


def test_a1111_texts_without_settings():
    assert text_of_a1111.parse("only words").settings == {"prompt": "only words"}
    assert text_of_a1111.parse("Negative prompt: x\nSteps: 3, Seed: many").dropped == ["Seed many"]


@pytest.mark.parametrize(
    ("size", "model", "grid", "other"),
    [
        ("512x512", "m", "ays_11", "SDXL"),
        ("1024x1024", "m", "ays_11_sdxl", "SD 1.x"),
        ("64x64", "ponyXL", "ays_11_sdxl", ""),
    ],
)
def test_align_your_steps_depends_on_the_model(size, model, grid, other):
    settings = f"Sampler: Euler, Schedule type: Align Your Steps, Size: {size}, Model: {model}"
    told = text_of_a1111.parse(f"x\nSteps: 9, {settings}")
    assert told.settings["grid"] == grid
    assert any("Align Your Steps" in each and other in each for each in told.dropped)


def test_fooocus_can_write_the_text_of_automatic1111():
    told = text_of_a1111.parse("x\nSteps: 9, Sampler: DPM++ 2M SDE Karras, Seed: 1, Version: Fooocus v2.5.0")
    assert (told.program, told.settings["like"], told.settings["grid"]) == ("Fooocus", "comfyui", "karras")


WORDS = "一只猫, a cat"


@pytest.mark.parametrize(
    ("encoding", "mark"),
    [("utf-16-be", b""), ("utf-16-le", b""), ("utf-16-be", b"\xfe\xff"), ("utf-16-le", b"\xff\xfe"), ("utf-8", b""),
     ("utf-8", b"\xef\xbb\xbf")],
)  # fmt: skip
@pytest.mark.parametrize("words", [WORDS, "a cat", "一只猫", "кот"])
def test_unicode_in_exif_is_read_in_either_order(tmp_path, encoding, mark, words):
    text = f"{words}\nSteps: 3, Sampler: Euler"
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + mark + text.encode(encoding)
    PICTURE.save(tmp_path / "a.jpg", exif=exif)
    assert read_told(tmp_path / "a.jpg").settings["prompt"] == words


def with_texts(tmp_path, **texts) -> object:
    chunks = PngInfo()
    for name, text in texts.items():
        chunks.add_text(name, text if isinstance(text, str) else json.dumps(text))
    PICTURE.save(tmp_path / "a.png", pnginfo=chunks)
    return read_told(tmp_path / "a.png")


def test_pictures_of_swarmui(tmp_path):
    inner = {
        "prompt": "a cat", "negativeprompt": "a dog", "model": "m", "seed": 5, "steps": 20, "cfgscale": 6.5,
        "width": 1024, "height": 768, "sampler": "dpmpp_2m", "scheduler": "karras", "loras": ["fur"],
        "swarm_version": "0.9",
    }  # fmt: skip
    told = with_texts(tmp_path, parameters={"sui_image_params": inner})
    assert told.program == "SwarmUI"
    assert told.settings == {
        "prompt": "a cat", "negative": "a dog", "seed": 5, "steps": 20, "guidance": 6.5, "size": "1024x768",
        "sampler": "dpmpp_2m", "grid": "karras", "like": "comfyui",
    }  # fmt: skip
    assert told.dropped == ["model m", "loras ['fur']"]
    del inner["sampler"]
    told = with_texts(tmp_path, parameters={"sui_image_params": {**inner, "height": "tall"}})
    assert not {"grid", "like", "size"} & set(told.settings)
    assert {"scheduler karras", "height tall"} <= set(told.dropped)


@pytest.mark.parametrize("older", [False, True])
def test_pictures_of_fooocus(tmp_path, older):
    values = {
        "prompt": "a cat", "negative_prompt": "", "styles": "['Fooocus V2']", "steps": 30, "seed": "5",
        "resolution": "(1152, 896)", "guidance_scale": 4, "base_model": "jugger", "refiner_model": "None",
        "sampler": "dpmpp_2m_sde_gpu", "scheduler": "align_your_steps", "clip_skip": 2, "version": "Fooocus v2.5.5",
    }  # fmt: skip
    named = {name.replace("_", " ").title(): value for name, value in values.items()} if older else values
    told = with_texts(tmp_path, parameters=named, fooocus_scheme="fooocus")
    assert told.program == "Fooocus"
    assert told.settings == {
        "prompt": "a cat", "seed": 5, "steps": 30, "guidance": 4.0, "size": "1152x896", "clip_skip": 2,
        "sampler": "dpmpp_2m_sde_gpu", "grid": "ays_sdxl", "like": "comfyui",
    }  # fmt: skip
    assert told.dropped == ["styles ['Fooocus V2']", "base_model jugger"]


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        ({"parameters": {"wish": "a cat"}}, "program that is not read here .*wish"),
        ({"parameters": '{"a": 1, "a": 2}'}, "stands twice"),
        ({"prompt": "a cat", "seed": "5", "num_inference_steps": "20"}, "made by Easy Diffusion, whose"),
        ({"prompt": "a cat"}, "no graph of ComfyUI"),
        ({"invokeai_metadata": {"positive_prompt": "a cat"}}, "made by InvokeAI, whose"),
        ({"Software": "NovelAI", "Comment": {"prompt": "a cat"}}, "made by NovelAI, whose"),
    ],
)
def test_texts_of_programs_that_are_not_read_are_refused_by_name(tmp_path, texts, words):
    with pytest.raises(InputError, match=words):
        with_texts(tmp_path, **texts)


def test_a_prompt_in_braces_is_no_object():
    from sd_ext.cli.pictures.objects import read_object

    assert read_object("{red|blue} apple", "a.png") is None and read_object("{red|blue}", "a.png") is None


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
