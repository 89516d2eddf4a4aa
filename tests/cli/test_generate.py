from __future__ import annotations

import shlex
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from sd_ext.cli import prepare
from sd_ext.cli.pictures import read_record

from ..few import few


def recipe_of(path):
    return read_record(path).recipe


@pytest.fixture
def draw(run, tiny_pipeline_dir):
    """`draw("red apple", "--num", 2)` with the tiny model and few steps."""
    return lambda *arguments: run("generate", "--model", tiny_pipeline_dir, "--steps", 3, *arguments)


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def test_one_picture(draw, tmp_path):
    done = draw("red apple")
    assert (done.code, done.out) == (0, "red-apple-0001.png\n")
    assert [path.name for path in tmp_path.iterdir()] == ["red-apple-0001.png"]
    assert Image.open(done.paths[0]).size == (64, 64)


def test_the_same_command_never_overwrites(draw):
    first, second = draw("red apple"), draw("red apple")
    assert second.out == "red-apple-0002.png\n"
    assert (pixels(first.paths[0]) == pixels(second.paths[0])).all()


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--seed", 2**40, "--guidance", 3.3, "--negative", "-blue", "--size", "64x80"],
        ["--sampler", "euler a", "--guidance-schedule", "interval 0.2 3"],
        ["--sampler", "dpm++ 2m", "--grid", "kl optimal", "--like", "a1111", "--guidance", 1],
        ["--unet", "fast"],
    ],
)
def test_a_picture_is_made_again_from_itself(draw, run, options):
    path = draw("red 'apple'", *options).paths[0]
    shown = run("info", path)
    command = shlex.split(shown.out.splitlines()[-1])
    assert command[:3] == ["sd-ext", "generate", "--again"]
    again = run(*command[1:]).paths[0]
    assert again != path
    assert again.read_bytes() == path.read_bytes()


def test_guidance_that_changes_on_the_way(draw):
    """Of the model's own sampler, too; the network's halves are there without being asked for."""
    plain, off, same = (
        draw("red apple", "--steps", 3, *more).paths[0]
        for more in (["--guidance", 1], ["--guidance-schedule", "interval 500 600"], [])
    )
    assert abs(pixels(plain).astype(int) - pixels(off)).max() <= 1
    assert (pixels(plain) != pixels(same)).any()


def test_settings_are_taken_from_a_picture(draw, run):
    first = draw("red apple", "--seed", 5, "--negative", "blue", "--sampler", "euler").paths[0]
    same = run("generate", "--from", first).paths[0]
    assert same.read_bytes() == first.read_bytes()
    other = run("generate", "--from", first, "blue heart", "--seed", 6, "--size", "64x72").paths[0]
    was, became = recipe_of(first), recipe_of(other)
    assert became == replace(was, prompt="blue heart", seed=6, size="64x72")


@pytest.mark.parametrize(
    ("options", "named"),
    [(["x"], "a prompt"), (["--steps", 4], "--steps"), (["--num", 2], "--num"), (["--from", "{path}"], "--from")],
)
def test_again_changes_nothing(draw, run, options, named):
    path = draw("red apple").paths[0]
    refused = run("generate", "--again", path, *(str(option).format(path=path) for option in options))
    assert (refused.code, refused.out) == (2, "")
    assert "--from" in refused.err and named in refused.err and refused.err.count("\n") == 1


def test_every_picture_has_its_own_seed(draw):
    done = draw("red apple", "blue heart", "--num", 3, "--seed", 5, "--out", "many")
    *pictures, sheet = done.paths
    recipes = [recipe_of(path) for path in pictures]
    assert [(recipe.prompt, recipe.seed) for recipe in recipes] == [
        (prompt, seed) for prompt in ("red apple", "blue heart") for seed in (5, 6, 7)
    ]
    assert sheet.name == "sheet-0001.png"
    assert Image.open(sheet).size == (3 * 136 + 8, 2 * 152 + 8)


@pytest.mark.parametrize("sampler", few(["euler a", "dpm++ 2m"], 2))
def test_a_batch_changes_no_picture_or_says_so(draw, sampler):
    command = "red apple", "--num", 3, "--sampler", sampler
    apart = draw(*command, "--out", "apart").paths[:3]
    done = draw(*command, "--batch", 3, "--vae-slicing", "--out", "together")
    most = max(np.abs(pixels(one) - pixels(other)).max() for one, other in zip(apart, done.paths[:3], strict=True))
    assert most <= 1
    assert (pixels(apart[2]) == pixels(done.paths[2])).all() == ("round differently" not in done.err)


def test_a_picture_of_many_is_drawn_as_it_is_alone(draw):
    *pictures, _ = draw("red apple", "blue heart", "--num", 2, "--seed", 5).paths
    assert (pixels(pictures[3]) == pixels(draw("blue heart", "--seed", 6).paths[0])).all()


@pytest.mark.parametrize("name", few(["exact", "balanced", "fast", "cached", "highres"], 2))
def test_presets_of_the_unet(draw, name):
    plain, path = draw("red apple").paths[0], draw("red apple", "--unet", name, "--steps", 6).paths[0]
    assert (recipe_of(plain).unet, recipe_of(path).unet) == (None, name)
    six = draw("red apple", "--steps", 6).paths[0]
    same = (pixels(path) == pixels(six)).all()
    assert same == (name in ("exact", "highres"))  # at the training size there is nothing to shrink or tile


def test_a_saved_variant_draws_as_saved_or_exactly(run, tiny_pipeline_dir, draw, tmp_path):
    from diffusers import StableDiffusionPipeline

    import sd_ext

    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir)
    pipe.register_modules(unet=sd_ext.CachedUNet2DConditionModel.from_unet(pipe.unet))
    pipe.save_pretrained(tmp_path / "cached")
    exact, cached = draw("x", "--steps", 6).paths[0], draw("x", "--steps", 6, "--unet", "cached").paths[0]
    for options, like in (([], cached), (["--unet", "exact"], exact)):
        path = run("generate", "x", "--model", "cached", "--steps", 6, *options).paths[0]
        assert (pixels(path) == pixels(like)).all()


def test_a_flow_models_own_scheduler_is_this_packages(run, tiny_pipeline_dir, tmp_path):
    """Diffusers' class for flow models has not all that pipelines with a U-Net ask for."""
    from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir)
    pipe.register_modules(scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0))
    pipe.save_pretrained(tmp_path / "flow")
    made = run("generate", "x", "--model", "flow", "--steps", 3)
    assert "sd_ext's of the same name takes its place" in made.err.replace("\n", " ")
    named = run("generate", "x", "--model", "flow", "--steps", 3, "--sampler", "flow euler")
    assert (pixels(made.paths[0]) == pixels(named.paths[0])).all()


def test_a_drawn_seed_is_recorded(draw):
    seeds = {recipe_of(draw("red apple", "--seed", -1).paths[0]).seed for _ in range(2)}
    assert len(seeds) == 2


LONG = "red apple " * 20


def test_a_plain_prompt_that_is_too_long_is_cut_which_is_said(draw):
    assert "is cut" not in draw("red apple", "--plain-prompt").err
    cut = draw(LONG, "--plain-prompt")
    assert "is cut" in cut.err
    shorter = draw("red apple " * 3, "--plain-prompt")  # the first 22 of its letters and those of the next
    assert (pixels(cut.paths[0]) == pixels(shorter.paths[0])).all()


def test_brackets_and_length_and_clip_skip_show_in_the_picture_and_are_kept_there(draw, run):
    plain = pixels(draw("red apple").paths[0])
    for prompt, options in (
        ("(red:1.9) apple", []),
        (LONG, []),
        ("red BREAK apple", []),
        ("red apple", ["--clip-skip", 2]),
    ):
        done = draw(prompt, "--guidance", 7, *options)
        assert "cut" not in done.err
        assert (pixels(done.paths[0]) != plain).any()
        again = run("generate", "--again", done.paths[0]).paths[0]
        assert again.read_bytes() == done.paths[0].read_bytes()


@pytest.mark.parametrize(
    ("prompt", "options"), [("red apple", []), ("red apple", ["--negative", "blue"]), ("red:1.3) apple", [])]
)
def test_prompts_without_brackets_are_given_to_the_pipeline_as_they_are(draw, monkeypatch, prompt, options):
    """So that pictures are the same, to the bit, as if nothing here read prompts."""

    def no(*arguments):
        raise AssertionError("encoded here")

    monkeypatch.setattr("sd_ext.prompts.encode.encode", no)
    read = draw(prompt, *options).paths[0]
    assert (pixels(read) == pixels(draw(prompt, "--plain-prompt", *options).paths[0])).all()


def test_batches_hold_prompts_that_are_equally_long(draw):
    prompts = "red apple", LONG, "(red) apple", "blue"
    together = draw(*prompts, "--negative", "x", "--batch", 4, "--out", "together").paths[:4]
    for prompt, one in zip(prompts, together, strict=True):
        alone = draw(prompt, "--negative", "x").paths[0]
        assert np.abs(pixels(one) - pixels(alone)).max() <= 1


def test_what_a_prompt_means_elsewhere_is_said(draw, run, tiny_sdxl_dir):
    assert "--lora FILE:STRENGTH" in draw("red <lora:x:1>").err
    assert "takes turns" in draw("red", "--negative", "[a|b]").err
    refused = draw("red", "--clip-skip", 3)
    assert (refused.code, "this model has 1 to 2" in refused.err) == (2, True)
    xl = run("generate", "red", "--model", tiny_sdxl_dir, "--steps", 1, "--clip-skip", 2)
    assert (xl.code, "--clip-skip changes nothing" in xl.err) == (0, True)


def test_a_negative_prompt_without_guidance_is_said(draw):
    assert "does nothing" in draw("red apple", "--negative", "blue", "--guidance", 1).err


def test_the_size_is_width_by_height(draw):
    assert Image.open(draw("red apple", "--size", "96x64").paths[0]).size == (96, 64)


@pytest.mark.parametrize("dtype", few(["bfloat16", "float16"], 2))
def test_half_precision(draw, dtype):
    path = draw("red apple", "--dtype", dtype).paths[0]
    assert recipe_of(path).dtype == dtype
    assert pixels(path).std() > 0


def test_an_overflow_is_not_written(draw, tmp_path, monkeypatch):
    load = prepare.load_pipeline

    def overflowing(*arguments):
        pipe = load(*arguments)
        pipe.unet.conv_out.bias.data.fill_(float("inf"))
        return pipe

    monkeypatch.setattr(prepare, "load_pipeline", overflowing)
    done = draw("red apple")
    assert done.code == 2
    assert "overflowed in float32" in done.err
    assert not list(tmp_path.iterdir())


def test_a_named_file(draw, tmp_path):
    out = tmp_path / "new" / "apple.png"
    assert draw("red apple", "--out", out).paths == [out]
    before = out.read_bytes()
    refused = draw("red apple", "--out", out, "--seed", 1)
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert out.read_bytes() == before
    assert draw("red apple", "--out", out, "--seed", 1, "--overwrite").code == 0
    assert out.read_bytes() != before


def test_a_pipeline_that_knows_no_words(run, tiny_pipeline_dir, tmp_path):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    unet = UNet2DModel(8, block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2,
                       up_block_types=("UpBlock2D",) * 2)  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "wordless")
    refused = run("generate", "red apple", "--model", "wordless")
    assert refused.code == 2
    assert "does not draw from words" in refused.err


BAD = {
    "no prompt": ([], "no prompt given"),
    "empty prompt": ([""], "a prompt is empty"),
    "blank prompt": (["red apple", " "], "a prompt is empty"),
    "no steps": (["x", "--steps", "0"], "--steps 0"),
    "negative steps": (["x", "--steps", "-5"], "--steps -5"),
    "absurd steps": (["x", "--steps", "1000000"], "--steps 1000000"),
    "negative guidance": (["x", "--guidance", "-1"], "--guidance -1"),
    "no number": (["x", "--guidance", "nan"], "--guidance nan"),
    "odd size": (["x", "--size", "65x64"], "multiple of 8"),
    "size without meaning": (["x", "--size", "big"], "WIDTHxHEIGHT"),
    "huge size": (["x", "--size", "100000x64"], "4096"),
    "no pictures": (["x", "--num", "0"], "--num 0"),
    "seed": (["x", "--seed", "-7"], "--seed -7"),
    "clip skip of nothing": (["x", "--clip-skip", "0"], "--clip-skip 0 cannot work"),
    "clip skip beyond": (["x", "--clip-skip", "33"], "--clip-skip 33 cannot work"),
    "weight without a number": (["a (red:1.2.3) apple"], "the weight 1.2.3"),
    "unknown sampler": (["x", "--sampler", "dpmpp 2n"], "did you mean"),
    "unknown U-Net": (["x", "--unet", "fats"], "did you mean 'fast'"),
    "unknown grid": (["x", "--grid", "karas"], "did you mean 'karras'"),
    "unknown grid of a sampler": (["x", "--sampler", "ddim", "--grid", "karas"], "did you mean 'karras'"),
    "unknown program": (["x", "--sampler", "ddim", "--like", "comfyiu"], "did you mean 'comfyui'"),
    "a program without a sampler": (["x", "--like", "comfyui"], "needs --sampler"),
    "unknown guidance schedule": (["x", "--guidance-schedule", "cubic"], "must be 'linear', 'cosine'"),
    "guidance schedule of a sampler that has its own use for guidance": (
        ["x", "--sampler", "euler cfg++", "--guidance-schedule", "linear"],
        "leave --guidance-schedule out",
    ),
    "guidance schedule of a stranger": (
        ["x", "--guidance-schedule", "linear", "--model", "{stranger}"],
        "--guidance-schedule linear needs --sampler too",
    ),
    "grid of a stranger": (["x", "--grid", "karras", "--model", "{stranger}"], "--sampler"),
    "missing model": (["x", "--model", "no/such/folder"], "no such model folder"),
    "no pipeline": (["x", "--model", "{empty}"], "no model_index.json"),
    "pickles": (["x", "--model", "{pickles}"], "pickle"),
    "file for a folder": (["x", "--out", "{file}/pictures"], "is not a folder"),
    "no picture": (["x", "--out", "apple.gif"], "only .png"),
    "existing file": (["x", "--out", "{file}"], "exists"),
    "one file for two": (["x", "--num", "2", "--out", "apple.png"], "name a folder"),
    "read-only disk": (["x", "--out", "/proc/pictures"], "cannot write to /proc/pictures"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence(run, tiny_pipeline_dir, tmp_path, tmp_path_factory, monkeypatch, arguments, message):
    def too_late(*arguments):
        raise AssertionError("the model was loaded before its arguments were checked")

    elsewhere = tmp_path_factory.mktemp("elsewhere")
    places = {name: elsewhere / name for name in ("empty", "pickles", "stranger")}
    places["empty"].mkdir()
    shutil.copytree(tiny_pipeline_dir, places["pickles"])
    weights = next((places["pickles"] / "unet").glob("*.safetensors"))
    weights.rename(weights.with_suffix(".bin"))
    shutil.copytree(tiny_pipeline_dir, places["stranger"])
    config = places["stranger"] / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("DDIMScheduler", "KarrasVeScheduler"))
    index = places["stranger"] / "model_index.json"
    index.write_text(index.read_text().replace("DDIMScheduler", "RePaintScheduler"))
    places["file"] = elsewhere / "file.png"
    places["file"].write_bytes(b"theirs")
    if "{stranger}" not in arguments:
        monkeypatch.setattr(prepare, "load_pipeline", too_late)
    arguments = [argument.format(**places) for argument in arguments]
    model = [] if "--model" in arguments else ["--model", tiny_pipeline_dir]

    refused = run("generate", *model, *arguments)
    assert refused.code == 2
    assert refused.out == ""
    assert message in refused.err
    assert refused.err.startswith("sd-ext: ")
    assert refused.err.count("\n") == 1
    assert not list(tmp_path.iterdir())
    assert places["file"].read_bytes() == b"theirs"


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for CUDA where there is none")
def test_cuda_where_there_is_none(draw):
    refused = draw("red apple", "--device", "cuda")
    assert refused.code == 2
    assert "no CUDA device" in refused.err


@pytest.mark.parametrize(
    "arguments", [["generate", "x", "--dtype", "int8"], ["generate", "x", "--stepz", "3"], ["draw"]]
)
def test_usage_errors(run, arguments):
    refused = run(*arguments)
    assert refused.code == 2
    assert "Traceback" not in refused.err
