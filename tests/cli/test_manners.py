"""What `sd-ext generate` says, and where."""

from __future__ import annotations

import json
import logging
import warnings

import pytest
from PIL import Image

from sd_ext.cli.pictures import read_record
from sd_ext.cli.silence import silence
from sd_ext.errors import InputError


@pytest.fixture
def draw(run, tiny_pipeline_dir):
    return lambda *arguments: run("generate", "--model", tiny_pipeline_dir, "--steps", 2, *arguments)


def test_json_is_one_object_for_each_picture(draw):
    done = draw("red apple", "--num", 2, "--json", "--quiet")
    assert (done.code, done.err) == (0, "")
    told = [json.loads(line) for line in done.out.splitlines()]
    assert [each["recipe"]["seed"] for each in told] == [0, 1]
    for each in told:
        record = read_record(each["path"])
        assert (each["recipe"], each["made"]) == (record.recipe.as_json(), record.made)


def test_quiet_keeps_what_must_be_said(draw):
    done = draw("red apple", "--quiet", "--negative", "blue", "--guidance", 1)
    assert "does nothing" in done.err and done.err.count("\n") == 1


def test_a_dry_run_writes_nothing_and_loads_nothing(draw, tmp_path, monkeypatch):
    monkeypatch.setattr("sd_ext.cli.prepare.load_pipeline", None)
    done = draw("red apple", "--num", 2, "--dry-run", "--seed", 4)
    assert done.code == 0
    assert "red apple (5)" in done.out and "memory " in done.out
    told = [json.loads(line) for line in draw("red apple", "--num", 2, "--dry-run", "--json").out.splitlines()]
    assert [each["recipe"]["seed"] for each in told] == [0, 1]
    assert draw("x", "--dry-run", "--sampler", "no such").code == 2
    assert not list(tmp_path.iterdir())


def test_forgotten_quotes_are_said(draw):
    assert 'quote them: "red apple"' in draw("red", "apple", "--dry-run").err
    assert "quote" not in draw("red apple", "blue heart", "--dry-run").err
    assert "quote" not in draw("apple", "--dry-run").err


@pytest.mark.parametrize("name", ["a.jpg", "a.jpeg", "a.webp", "A.PNG"])
def test_the_ending_is_the_format(draw, name):
    path = draw("red apple", "--out", name).paths[0]
    with Image.open(path) as picture:
        assert picture.format == {"j": "JPEG", "w": "WEBP", "p": "PNG"}[path.suffix[1].lower()]
    assert read_record(path).recipe.prompt == "red apple"


def test_a_format_for_a_folder(draw):
    names = [path.name for path in draw("red apple", "--num", 2, "--format", "jpeg").paths]
    assert names == ["red-apple-0001.jpg", "red-apple-0002.jpg", "sheet-0001.jpg"]
    assert draw("red apple").out == "red-apple-0003.png\n"


def test_settings_of_another_program(draw, run, tmp_path, tiny_pipeline_dir):
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    text = "a cat\nSteps: 2, Sampler: Euler a, CFG scale: 3, Seed: 9, Size: 64x72, Model: dreamer, Hires upscale: 2"
    chunks.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=chunks)
    done = run("generate", "--from", "theirs.png", "--model", tiny_pipeline_dir)
    assert "Not taken from theirs.png: Hires upscale 2." in done.err
    recipe = read_record(done.paths[0]).recipe
    assert (recipe.prompt, recipe.steps, recipe.sampler, recipe.seed) == ("a cat", 2, "euler a", 9)
    assert (recipe.guidance, recipe.size) == (3.0, "64x72")
    assert "Model dreamer" in run("generate", "--from", "theirs.png", "--dry-run").err
    shown = run("info", "theirs.png")
    assert "made by AUTOMATIC1111" in shown.out and shown.out.endswith("--from theirs.png\n")


def test_what_is_given_goes_before_what_a_picture_says(draw, run, tmp_path, tiny_pipeline_dir):
    """Also where the picture's value cannot work, or is a guess."""
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    text = f"x\nSteps: 2, Sampler: Euler, Schedule type: Align Your Steps, CFG scale: 3, Seed: {2**64}, Size: 64x64"
    chunks.add_text("parameters", text)
    Image.new("RGB", (8, 8)).save(tmp_path / "theirs.png", pnginfo=chunks)
    refused = run("generate", "--from", "theirs.png", "--dry-run")
    assert refused.code == 2 and "at most 64 bits" in refused.err
    told = run("generate", "--from", "theirs.png", "--dry-run", "--seed", 2**64 - 1)
    assert told.code == 0 and str(2**64 - 1) in told.out + told.err and "--grid ays_11_sdxl" in told.err
    assert "--grid" not in run("generate", "--from", "theirs.png", "--dry-run", "--seed", 1, "--grid", "karras").err


def test_seeds_of_64_bits(draw, run):
    first = draw("red apple", "--seed", 2**64 - 2, "--num", 2).paths
    assert read_record(first[1]).recipe.seed == 2**64 - 1
    (again,) = run("generate", "--again", first[1]).paths
    with Image.open(again) as one, Image.open(first[1]) as other:
        assert one.tobytes() == other.tobytes()


def test_a_preview_is_kept_up_to_date(draw, tmp_path, monkeypatch):
    from sd_ext.cli.preview import Preview

    shown = []
    show = Preview.show

    def watch(self, calls, latents):
        show(self, calls, latents)
        shown.append(self.path.read_bytes())

    monkeypatch.setattr(Preview, "show", watch)
    assert draw("red apple", "--preview", "now.png", "--num", 2, "--batch", 2).code == 0
    assert len(shown) == 2 and shown[0] != shown[1]
    with Image.open(tmp_path / "now.png") as preview:
        assert preview.width > preview.height


def test_the_preview_has_the_colours_of_the_autoencoder():
    """For an autoencoder that is a linear map itself, the fitted map is that one."""
    import torch

    from sd_ext.cli.preview import as_picture, colour_map

    class Config:
        latent_channels, scaling_factor = 4, 0.5

    class Decoded:
        def __init__(self, sample):
            self.sample = sample

    mix = torch.linspace(-0.3, 0.3, 12).reshape(3, 4)

    class Linear:
        config, device, dtype = Config(), torch.device("cpu"), torch.float32

        def decode(self, latents):
            rgb = torch.einsum("bchw,dc->bdhw", latents * 0.5, mix) + 0.1
            return Decoded(rgb.repeat_interleave(8, -1).repeat_interleave(8, -2))

    class Pipe:
        vae = Linear()

    colours = colour_map(Pipe())
    assert torch.allclose(colours[:-1], mix.T, atol=1e-4) and torch.allclose(colours[-1], torch.tensor(0.1), atol=1e-4)
    grey = as_picture(torch.zeros(2, 4, 3, 5), colours)
    assert grey.size == (10, 3) and grey.getcolors() == [(30, (140, 140, 140))]


def test_other_libraries_are_silent_and_ours_speak(capsys):
    with silence():
        logging.getLogger("somebody.else").warning("theirs")
        logging.getLogger("sd_ext.whole").warning("ours")
        warnings.warn("theirs", stacklevel=1)
        warnings.warn_explicit("ours too", UserWarning, "x.py", 1, module="sd_ext.schedulers.registry")
    assert "theirs" not in capsys.readouterr().err
    logging.getLogger("somebody.else").warning("afterwards")


def test_an_error_is_no_warning():
    with pytest.raises(InputError), silence():
        raise InputError("ours")


def test_the_shell_completes_options_and_values(run, monkeypatch, capsys):
    """As bash asks for it."""
    import sd_ext.cli as cli

    def completed(line: str) -> list[str]:
        monkeypatch.setenv("_SD_EXT_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
        capsys.readouterr()
        cli.main([])
        return capsys.readouterr().out.split()

    assert "generate" in completed("sd-ext gen")
    assert {"--sampler", "--steps", "--seed", "--size"} <= set(completed("sd-ext generate --s"))
    assert completed("sd-ext generate --dtype fl") == ["float32", "float16"]
