"""A small set in one style: each thing once, captioned with the style, read by training as any other."""

import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from sd_ext.cli import app
from sd_ext.errors import InputError, UnknownNameError
from sd_ext.training.data.sources import read_items
from sd_ext.training.sets.drawings import style as room
from sd_ext.training.sets.drawings.grammar import read_grammar
from sd_ext.training.sets.drawings.packages import declared
from sd_ext.training.sets.drawings.style import FORMS, caption, write_style

from .conftest import SHAPES, write_package

STYLE = "high contrast"


def rows(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def test_each_thing_once_in_that_style_alone(tmp_path, packages):
    said = write_style(tmp_path / "set", packages, STYLE, 100, size=32)
    assert said == [f"8 pictures in {tmp_path / 'set'} (there are no more in this style; 100 were asked for)"]
    listed = rows(tmp_path / "set")
    assert {row["concept"] for row in listed} == {"apple", "cat", "star", "fish", "tree", "car", "dog", "grapes"}
    assert len(listed) == len(SHAPES) == len(read_items(tmp_path / "set"))
    assert {row["set"] for row in listed} == {"fluent-high-contrast"}
    for row in listed:
        assert STYLE in row["text"] and row["concept"] in row["text"]
        with Image.open(tmp_path / "set" / row["file_name"]) as picture:
            assert (picture.mode, picture.size) == ("RGB", (32, 32))
            assert picture.getpixel((0, 31)) == (255, 255, 255) or row["concept"] in ("cat", "grapes")
    assert {path.suffix for path in (tmp_path / "set").iterdir()} == {".png", ".jsonl", ".md"}
    assert "| Microsoft Corporation | MIT |" in (tmp_path / "set" / "ATTRIBUTION.md").read_text()


def test_fewer_are_spread_evenly_and_the_same_each_time(tmp_path, packages):
    write_style(tmp_path / "all", packages, STYLE, 8, size=32)
    assert write_style(tmp_path / "three", packages, STYLE, 3, size=32) == [f"3 pictures in {tmp_path / 'three'}"]
    every, three = ([row["concept"] for row in rows(tmp_path / name)] for name in ("all", "three"))
    assert [every.index(name) for name in three] == [0, 4, 7]
    write_style(tmp_path / "again", packages, STYLE, 3, size=32)
    files = [path.name for path in (tmp_path / "three").iterdir()]
    assert all((tmp_path / "three" / n).read_bytes() == (tmp_path / "again" / n).read_bytes() for n in files)


def test_captions_are_english():
    speech = read_grammar().speech
    said = [caption(thing, STYLE, number, speech) for thing in ("owl", "grapes") for number in range(len(FORMS))]
    assert said == [
        "a high contrast owl", "owl, high contrast", "high contrast owl", "an owl, high contrast style",
        "some high contrast grapes", "grapes, high contrast", "high contrast grapes",
        "some grapes, high contrast style",
    ]  # fmt: skip


def test_only_the_styles_packages_are_needed(tmp_path, packages):
    for package in declared()[0].values():
        if package.style != STYLE and (packages / "node_modules" / package.package).exists():
            (packages / "node_modules" / package.package).rename(tmp_path / package.name)
    assert write_style(tmp_path / "set", packages, STYLE, 2, size=32)


def test_what_cannot_work_leaves_nothing(tmp_path, packages, monkeypatch):
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UnknownNameError, match="unknown style 'high contast'; did you mean 'high contrast'"):
        write_style(tmp_path / "set", packages, "high contast", 3)
    with pytest.raises(InputError, match="is there already"):
        write_style(packages, packages, STYLE, 3)
    for name, value in (("pictures", 0), ("size", 8), ("seed", -1)):
        with pytest.raises(InputError, match=f"{name} is {value}; it must be from"):
            write_style(**{"out": tmp_path / "set", "packages": packages, "style": STYLE, "pictures": 2, name: value})
    with pytest.raises(InputError, match="lacks emojibase-data"):
        write_style(tmp_path / "set", tmp_path / "nowhere", STYLE, 3)
    monkeypatch.setattr(room, "paint", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_style(tmp_path / "set", packages, STYLE, 3, size=32)
    assert sorted(tmp_path.iterdir()) == before


def test_drawings_that_do_not_render_are_named(tmp_path, packages):
    icons = {"cat": {"body": '<image href="file:///etc/passwd"/>'}, "star": {"body": '<circle r="9"/>'}}
    write_package(packages, declared()[0]["fluent-high-contrast"], icons={"width": 32, "height": 32, "icons": icons})
    said = write_style(tmp_path / "set", packages, STYLE, 1, size=32)
    assert said[1:] == ["left out: @iconify-json/fluent-emoji-high-contrast, cat: it holds <image>"]


def test_the_command(tmp_path, packages):
    out = ["train", "data", "--out", str(tmp_path / "set")]
    given = [*out, "--packages", str(packages), "--style", STYLE]
    done = CliRunner().invoke(app, [*given, "--pictures", "3", "--size", "32"])
    assert done.exit_code == 0, done.output
    assert "3 pictures in" in done.output
    failed = CliRunner().invoke(app, [*given, "--first", "3"])
    assert isinstance(failed.exception, InputError) and "--first" in str(failed.exception)
    assert CliRunner().invoke(app, [*out, "--style", STYLE]).exit_code == 2  # without --packages
