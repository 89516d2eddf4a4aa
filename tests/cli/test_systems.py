"""What can be tried here of Windows and macOS: consoles, line ends, backslashes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import PureWindowsPath

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sd_ext.cli.pictures import Record, a1111, name_stem
from sd_ext.cli.request import Recipe

FORBIDDEN = set('<>:"/\\|?*') | {chr(code) for code in range(32)}  # in names of files on Windows


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "utf-8"])
def test_consoles_of_windows(tmp_path, encoding):
    """What the console cannot show is written as escapes, and nothing ends in an error."""
    chunks = PngInfo()
    chunks.add_itxt(
        "parameters", "日本 café 🍎\r\nNegative prompt: ß\r\nSteps: 3, Sampler: Euler, Seed: 1, CFG scale: 7"
    )
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=chunks)
    shown = subprocess.run(
        [sys.executable, "-m", "sd_ext.cli", "info", "a.png"], cwd=tmp_path, capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert shown.returncode == 0
    text = shown.stdout.decode(encoding)
    assert ("日本" if encoding == "utf-8" else r"\u65e5\u672c") in text and "café" in text
    assert (b"escapes" in shown.stderr) == (encoding != "utf-8")
    assert "negative" in text and "ß" in text


def test_line_ends_of_windows_are_read():
    told = a1111.parse("a cat\r\nNegative prompt: dog\r\nSteps: 3, Sampler: Euler a, Seed: 1\r\n")
    assert (told.settings["prompt"], told.settings["negative"], told.settings["seed"]) == ("a cat", "dog", 1)
    assert told.settings["sampler"] == "euler a"


@pytest.mark.parametrize("prompt", ["CON", "a/b\\c:d", 'what? "x" <y> | *', "a.", "日本", "\t", "x" * 300, "aux."])
def test_names_of_files_are_allowed_on_windows(prompt):
    name = f"{name_stem(prompt)}-0001.png"
    assert not FORBIDDEN & set(name) and len(name) < 60
    assert PureWindowsPath(name).stem.upper() not in {"CON", "PRN", "AUX", "NUL", "COM1", "LPT1"}


def test_a_models_path_of_windows_gives_its_name():
    for model in (r"C:\models\dreamer", r"C:\models\dreamer.safetensors", "models/dreamer", "owner/dreamer"):
        assert ", Model: dreamer, " in a1111.parameters(Record(Recipe(prompt="x", model=model)))
