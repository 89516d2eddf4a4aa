"""The whole set as a folder: read by training as any other, whole or not there, with its thanks."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sd_ext.cli import app
from sd_ext.errors import InputError
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.data.sources import read_items
from sd_ext.training.sets.drawings import folder as room
from sd_ext.training.sets.drawings.book import read_words
from sd_ext.training.sets.drawings.concepts import read_concepts
from sd_ext.training.sets.drawings.folder import write_drawings
from sd_ext.training.sets.drawings.icons import Finder, read_icons
from sd_ext.training.sets.drawings.packages import declared, usable

from .conftest import write_package

REAL = os.environ.get("SD_EXT_DRAWINGS")


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_set_is_a_folder_that_training_reads(tmp_path, packages):
    said = write_drawings(tmp_path / "set", packages, 40, size=32, quiet=True)
    assert said == [said[0]] and said[0].startswith(f"40 pictures in {tmp_path / 'set'}")
    listed = rows(tmp_path / "set")
    assert len(listed) == 40
    splits = Counter(row["split"] for row in listed)
    for split, count in splits.items():
        assert len(read_items(tmp_path / "set", split)) == count
    pictures = Pictures(tmp_path / "set", 32)
    assert pictures.captions == [row["text"] for row in listed]
    assert not pictures.skipped
    drawings = Pictures(tmp_path / "set" / "drawings", 32, "style")  # the style that a LoRA learns
    assert set(drawings.captions) == {"apple", "cat", "star", "fish", "tree", "car", "dog", "grapes"}
    assert (tmp_path / "set" / "sheet.png").stat().st_size > 1000


def test_a_set_goes_on_where_another_ended(tmp_path, packages):
    write_drawings(tmp_path / "all", packages, 12, size=32, quiet=True)
    write_drawings(tmp_path / "rest", packages, 4, size=32, first=8, quiet=True)
    assert rows(tmp_path / "all")[8:] == rows(tmp_path / "rest")
    for row in rows(tmp_path / "rest"):
        assert (tmp_path / "all" / row["file_name"]).read_bytes() == (tmp_path / "rest" / row["file_name"]).read_bytes()


def test_authors_and_licences_are_named(tmp_path, packages):
    write_drawings(tmp_path / "set", packages, 1, size=32, quiet=True)
    thanks = (tmp_path / "set" / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for package in (*usable(), declared()[1]):
        row = next(line for line in thanks.splitlines() if f"| {package.package} " in line)
        assert package.author in row and package.licence in row and package.source in row
    assert "openmoji" not in thanks


def test_drawings_that_do_not_render_are_left_out_and_named(tmp_path, packages):
    noto = declared()[0]["noto"]
    icons = {"red-apple": {"body": '<image href="file:///etc/passwd"/>'}, "cat": {"body": '<circle r="9" fill="red"/>'}}
    write_package(packages, noto, icons={"width": 32, "height": 32, "icons": icons})
    said = write_drawings(tmp_path / "set", packages, 2, size=32, quiet=True)
    assert said[1:] == ["left out: @iconify-json/noto, red-apple: it holds <image>"]


@pytest.mark.parametrize("missing", ["@iconify-json/fluent-emoji", "emojibase-data"])
def test_a_missing_package_is_named_and_leaves_nothing(tmp_path, packages, missing):
    (packages / "node_modules" / missing).rename(tmp_path / "away")
    with pytest.raises(InputError, match=f"lacks {missing}: run `npm pack {missing}`"):
        write_drawings(tmp_path / "set", packages, 2, quiet=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["away", "packages"]


def test_an_interrupted_set_leaves_nothing(tmp_path, packages, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(room, "sheet", stop)
    with pytest.raises(KeyboardInterrupt):
        write_drawings(tmp_path / "set", packages, 2, size=32, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["packages"]


def test_a_disk_that_fills_up_leaves_nothing(tmp_path, packages, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(room, "sheet", full)
    with pytest.raises(InputError, match=r"cannot write .*set: No space left on device"):
        write_drawings(tmp_path / "set", packages, 2, size=32, quiet=True)
    assert [p.name for p in tmp_path.iterdir()] == ["packages"]


def test_nothing_to_draw(tmp_path, packages):
    for package in usable():
        icons = {"width": 32, "height": 32, "icons": {"nobody-knows": {"body": "<g/>"}}}
        write_package(packages, package, icons=icons, chars={})
    with pytest.raises(InputError, match="holds no drawing of any concept"):
        write_drawings(tmp_path / "set", packages, 2, quiet=True)


def test_settings_that_cannot_work(tmp_path, packages, monkeypatch):
    with pytest.raises(InputError, match="is there already"):
        write_drawings(packages, packages, 2)
    for name, value in (("pictures", 0), ("size", 8), ("size", 1000), ("seed", -1), ("first", -1)):
        with pytest.raises(InputError, match=f"{name} is {value}; it must be from"):
            write_drawings(**{"out": tmp_path / "set", "packages": packages, "pictures": 2, name: value})
    with pytest.raises(InputError, match=r"10000000 pictures take about .* MB left: make room, or draw fewer"):
        usage = type("Usage", (), {"free": 10**9})
        monkeypatch.setattr(room.shutil, "disk_usage", lambda _: usage)
        write_drawings(tmp_path / "set", packages, 10**7)
    assert not (tmp_path / "set").exists()


def test_a_machine_without_the_renderer(tmp_path, packages, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "resvg_py", None)
    with pytest.raises(InputError, match=r"pip install 'sd_ext\[drawings\]'"):
        write_drawings(tmp_path / "set", packages, 2, quiet=True)


def test_the_command(tmp_path, packages):
    out = ["train", "data", "--out", str(tmp_path / "set")]
    done = CliRunner().invoke(app, [*out, "--packages", str(packages), "--pictures", "3", "--size", "32"])
    assert done.exit_code == 0, done.output
    assert "3 pictures in" in done.output
    failed = CliRunner().invoke(app, [*out, "--fetch"])
    assert failed.exit_code == 2 and "--packages" in failed.output
    failed = CliRunner().invoke(app, [*out, "--packages", str(packages), "--style", "x", "--first", "3"])
    assert isinstance(failed.exception, InputError) and "--first" in str(failed.exception)


@pytest.mark.skipif(not REAL, reason="the real packages: set SD_EXT_DRAWINGS to a folder that `--fetch` filled")
def test_every_concept_is_drawn_by_at_least_four_sets():
    packages = Path(str(REAL))
    icons = [read_icons(packages, package) for package in usable() if package.use == "train"]
    finder = Finder(icons, read_words(packages, declared()[1])[0])
    for concept in read_concepts():
        drawn = [i.package.name for i in icons if any(finder.find(i, emoji) for emoji in concept.emoji)]
        assert len(drawn) >= 4, f"{concept.name} is drawn by {drawn}"
