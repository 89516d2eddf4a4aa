"""Command lines that are wrong: one sentence, exit code 2, nothing written."""

from __future__ import annotations

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

X = ["generate", "x"]
WRONG = {
    "": [],  # overwritten below: a group alone shows its help
    "no such command": ["draw", "x"],
    "a command's typing mistake": ["generat", "x"],
    "an option of no command": ["--steps", "3"],
    "no prompt": ["generate"],
    "empty prompt": ["generate", ""],
    "blank prompt": ["generate", "red", "  "],
    "prompt of no text": ["generate", "\udcff"],
    "negative of no text": [*X, "--negative", "\udcff"],
    "unknown option": [*X, "--stepz", "3"],
    "short option": [*X, "-q"],
    "no value": [*X, "--steps"],
    "word for a number": [*X, "--steps", "many"],
    "fraction for a whole number": [*X, "--steps", "2.5"],
    "no steps": [*X, "--steps", "0"],
    "negative steps": [*X, "--steps=-5"],
    "too many steps": [*X, "--steps", "1001"],
    "huge steps": [*X, "--steps", "9" * 30],
    "guidance word": [*X, "--guidance", "much"],
    "guidance negative": [*X, "--guidance=-1"],
    "guidance nan": [*X, "--guidance", "nan"],
    "guidance infinite": [*X, "--guidance", "inf"],
    "seed negative": [*X, "--seed=-2"],
    "seed too large": [*X, "--seed", str(2**64)],
    "seed word": [*X, "--seed", "lucky"],
    "num none": [*X, "--num", "0"],
    "num too many": [*X, "--num", "1001"],
    "num times prompts": ["generate", "x y", "z", "--num", "501"],
    "size one side": [*X, "--size", "64"],
    "size odd": [*X, "--size", "65x64"],
    "size small": [*X, "--size", "8x8"],
    "size large": [*X, "--size", "8192x64"],
    "size empty": [*X, "--size", ""],
    "device": [*X, "--device", "tpu"],
    "device empty": [*X, "--device", ""],
    "dtype": [*X, "--dtype", "int8"],
    "format": [*X, "--format", "gif"],
    "format and ending": [*X, "--format", "png", "--out", "a.jpg"],
    "ending": [*X, "--out", "a.gif"],
    "one file for two": ["generate", "x y", "z", "--out", "a.png"],
    "existing file": [*X, "--out", "theirs.png"],
    "below a file": [*X, "--out", "theirs.png/b"],
    "preview ending": [*X, "--preview", "a.txt"],
    "preview below a file": [*X, "--preview", "theirs.png/b.png"],
    "model missing": [*X, "--model", "no/such/folder"],
    "model empty": [*X, "--model", ""],
    "model file": [*X, "--model", "theirs.png"],
    "again missing": ["generate", "--again", "none.png"],
    "again silent": ["generate", "--again", "theirs.png"],
    "again of others": ["generate", "--again", "a1111.png"],
    "again a folder": ["generate", "--again", "."],
    "again and prompt": ["generate", "--again", "a1111.png", "x"],
    "again and from": ["generate", "--again", "a1111.png", "--from", "a1111.png"],
    "again and steps": ["generate", "--again", "a1111.png", "--steps", "3"],
    "again and num": ["generate", "--again", "a1111.png", "--num", "2"],
    "from missing": ["generate", "--from", "none.png"],
    "from silent": ["generate", "--from", "theirs.png"],
    "from that cannot work": ["generate", "--from", "odd.png"],
    "from with a wrong change": ["generate", "--from", "a1111.png", "--steps", "0"],
    "from as --start": ["generate", "--start", "a1111.png"],
    "info of nothing": ["info"],
    "info of two": ["info", "a.png", "b.png"],
    "info missing": ["info", "none.png"],
    "info silent": ["info", "theirs.png"],
    "info of text": ["info", "text.txt"],
    "verify of nothing": ["verify"],
    "verify missing": ["verify", "none.png"],
    "verify of others": ["verify", "a1111.png"],
    "samplers with a word": ["samplers", "euler"],
    "samplers search alone": ["samplers", "--search"],
    "train nobody": ["train", "everything"],
    "convert nobody": ["convert", "everything"],
    "publish nothing": ["publish", "lora"],
    "words of nothing": ["words", " "],
}
del WRONG[""]


@pytest.fixture
def place(run, tmp_path):
    """A folder with a picture that says nothing, two of AUTOMATIC1111, and a text."""
    for name, text in {
        "theirs.png": "",
        "a1111.png": "x\nSteps: 3, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64",
        "odd.png": "x\nSteps: 0, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64",
    }.items():
        chunks = PngInfo()
        if text:
            chunks.add_text("parameters", text)
        Image.new("RGB", (8, 8)).save(tmp_path / name, pnginfo=chunks)
    (tmp_path / "text.txt").write_text("no picture")
    return tmp_path


def contents(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_there_are_sixty():
    assert len(WRONG) >= 60


@pytest.mark.parametrize("arguments", WRONG.values(), ids=WRONG)
def test_one_sentence(run, place, monkeypatch, arguments):
    def too_late(*arguments, **options):
        raise AssertionError("a model was loaded before the command line was found to be wrong")

    monkeypatch.setattr("sd_ext.models.pipeline.load_pipeline", too_late)
    before = contents(place)
    refused = run(*arguments)
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.startswith("sd-ext: ") and refused.err.count("\n") == 1
    assert "Traceback" not in refused.err and "Input should be" not in refused.err
    assert contents(place) == before


def test_what_was_meant_is_said(run):
    assert "--steps" in run("generate", "x", "--stepz", "3").err
    assert "generate" in run("generat", "x").err


def test_a_group_alone_shows_its_help(run):
    for group in ([], ["train"], ["convert"], ["publish"]):
        shown = run(*group)
        assert shown.code == 2 and "Usage" in shown.out + shown.err
