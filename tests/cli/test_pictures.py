from __future__ import annotations

import dataclasses
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sd_ext.cli.pictures import Destination, Recipe, encode, name_stem, read_recipe, thumbnail
from sd_ext.errors import InputError, printable

RECIPE = Recipe(
    prompt="red apple",
    negative="",
    seed=7,
    model="embedded",
    sampler="dpm++ 2m",
    grid="karras",
    scheduler="DPMSolverMultistepScheduler",
    steps=20,
    guidance=4.5,
    width=64,
    height=96,
    device="cpu",
    dtype="float32",
)
PICTURE = Image.new("RGB", (64, 96), "red")


@pytest.fixture
def folder(tmp_path):
    return Destination(tmp_path)


@given(prompt=st.text(), seed=st.integers(0, 2**63 - 1), guidance=st.floats(0, 100))
def test_a_png_gives_its_recipe_back(tmp_path_factory, prompt, seed, guidance):
    path = tmp_path_factory.getbasetemp() / "recipe.png"
    recipe = dataclasses.replace(RECIPE, prompt=prompt, seed=seed, guidance=guidance)
    try:
        prompt.encode()
    except UnicodeEncodeError:  # refused before a recipe is made
        return
    path.write_bytes(encode(PICTURE, recipe))
    read, software = read_recipe(path)
    assert read == recipe
    assert software.startswith("sd_ext ")


def test_the_command_says_all_that_differs_from_nothing():
    words = shlex.split(RECIPE.command())
    assert words[:2] == ["sd-ext", "generate"]
    assert words[-2:] == ["--", "red apple"]
    assert {"--sampler=dpm++ 2m", "--grid=karras", "--guidance=4.5", "--seed=7", "--size=64x96"} <= set(words)
    assert not any(word.startswith(("--model", "--negative")) for word in words)


def test_a_hostile_prompt_is_quoted_and_cannot_steer_the_terminal():
    recipe = dataclasses.replace(RECIPE, prompt="-x'; rm -rf ~ \x1b[2J")
    assert shlex.split(recipe.command())[-1] == recipe.prompt
    assert "\x1b" not in printable(recipe.command())


@pytest.mark.parametrize("content", [b"", b"no picture", encode(PICTURE), encode(PICTURE, RECIPE)[:60]])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "file.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"file\.png"):
        read_recipe(path)


def test_numbers_go_on_after_the_highest(tmp_path, folder):
    for name in ("apple-0002.png", "apple-pie-0009.png", "apple-x.png"):
        (tmp_path / name).write_bytes(b"")
    assert folder.write(b"a", "apple").name == "apple-0003.png"
    assert folder.write(b"b", "apple").name == "apple-0004.png"
    assert not list(tmp_path.glob(".*"))


def test_a_name_taken_meanwhile_is_not_overwritten(tmp_path, folder, monkeypatch):
    (tmp_path / "apple-0001.png").write_bytes(b"theirs")
    numbers = iter([1, 2])
    monkeypatch.setattr("sd_ext.cli.pictures._free_number", lambda folder, stem: next(numbers))
    assert folder.write(b"ours", "apple").name == "apple-0002.png"
    assert (tmp_path / "apple-0001.png").read_bytes() == b"theirs"


def test_a_disk_without_links(tmp_path, folder, monkeypatch):
    def no_link(*names):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.link", no_link)
    assert folder.write(b"a", "apple").read_bytes() == b"a"
    assert folder.write(b"b", "apple").name == "apple-0002.png"
    (tmp_path / "one.png").write_bytes(b"theirs")
    with pytest.raises(InputError, match="exists"):
        Destination(tmp_path, "one.png").write(b"ours", "apple")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["apple-0001.png", "apple-0002.png", "one.png"]


def test_a_full_disk_leaves_nothing(tmp_path, folder, monkeypatch):
    def full(path, data):
        path.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(InputError, match=r"cannot write .*apple-0001\.png: No space left"):
        folder.write(b"a", "apple")
    assert not list(tmp_path.iterdir())


def test_a_file_is_replaced_only_when_told(tmp_path):
    path = tmp_path / "apple.png"
    path.write_bytes(b"old")
    with pytest.raises(InputError, match="exists"):
        Destination.check(path, 1, overwrite=False)
    assert Destination.check(path, 1, overwrite=True).write(b"new", "") == path
    assert path.read_bytes() == b"new"


def test_where_pictures_cannot_go(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for out, pictures in [("file/deep/er", 1), ("file/a.png", 1), ("two.png", 2), ("a.jpg", 1)]:
        with pytest.raises(InputError, match=r"cannot write|one file|only \.png"):
            Destination.check(tmp_path / out, pictures, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_checking_a_folder_does_not_make_it(tmp_path):
    destination = Destination.check(tmp_path / "deep" / "er", 2, overwrite=False)
    assert not list(tmp_path.iterdir())
    assert destination.write(b"a", "apple") == tmp_path / "deep" / "er" / "apple-0001.png"


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ("A red apple!", "a-red-apple"),
        ("../../etc", "etc"),
        ("リンゴ", "リンゴ"),
        ("?!", "picture"),
        ("a" * 99, "a" * 40),
    ],
)
def test_names_come_from_prompts(prompt, stem):
    assert name_stem(prompt) == stem


def test_small_pictures_are_enlarged_in_whole_pixels():
    assert thumbnail(PICTURE).size == (128, 192)
    assert thumbnail(Image.new("RGB", (1024, 512))).size == (256, 128)
    assert thumbnail(Image.new("L", (200, 200))).mode == "RGB"
