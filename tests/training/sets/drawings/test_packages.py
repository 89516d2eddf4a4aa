"""Packages: fetched as declared, found in both layouts, and refused when they are not what they say."""

import io
import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from sd_ext.errors import InputError
from sd_ext.training.sets.drawings import packages as room
from sd_ext.training.sets.drawings.icons import Finder, code_of, read_icons
from sd_ext.training.sets.drawings.packages import check_licence, declared, fetch, read_file, usable

from .conftest import SHAPES, write_package


@pytest.fixture
def noto():
    return declared()[0]["noto"]


def pack(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    """An archive as `npm pack` leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(folder / name, "w:gz") as archive:
        for path, data in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return folder / name


def test_no_set_to_draw_from_asks_to_share_alike():
    everything, _ = declared()
    assert any("SA" in p.licence for p in everything.values())  # one is declared, to say that it is not used
    for package in usable():
        assert package.licence in ("MIT", "Apache-2.0", "CC-BY-4.0")


def test_archives_and_installed_packages_read_alike(tmp_path, noto):
    about = json.dumps({"name": noto.package, "version": "9", "license": noto.licence}).encode()
    pack(tmp_path / "a", "iconify-json-noto-1.2.9.tgz", {"package/package.json": about})
    write_package(tmp_path / "b", noto, package=json.loads(about))
    assert json.loads(read_file(tmp_path / "a", noto, "package.json")) == json.loads(about)
    assert check_licence(tmp_path / "a", noto) == check_licence(tmp_path / "b", noto) == "9"


def test_a_set_whose_name_begins_alike_is_not_taken_for_another(tmp_path):
    sets, _ = declared()
    pack(tmp_path, "iconify-json-fluent-emoji-flat-1.2.6.tgz", {"package/package.json": b"{}"})
    with pytest.raises(InputError, match="lacks @iconify-json/fluent-emoji:"):
        read_file(tmp_path, sets["fluent"], "package.json")


@pytest.mark.parametrize(("key", "value"), [("license", "CC-BY-SA-4.0"), ("name", "@iconify-json/other")])
def test_a_package_that_is_not_what_it_says(tmp_path, noto, key, value):
    about = {"name": noto.package, "version": "1", "license": noto.licence, key: value}
    write_package(tmp_path, noto, package=about)
    with pytest.raises(InputError, match=f"says its {key} is '{value}'"):
        read_icons(tmp_path, noto)


def test_damaged_archives(tmp_path, noto):
    (tmp_path / "iconify-json-noto-1.2.9.tgz").write_bytes(b"\x1f\x8b no archive")
    with pytest.raises(InputError, match="is not a package as `npm pack` leaves it"):
        read_file(tmp_path, noto, "icons.json")
    pack(tmp_path, "iconify-json-noto-1.2.9.tgz", {"package/other.json": b"{}"})
    with pytest.raises(InputError, match=r"holds no package/icons\.json"):
        read_file(tmp_path, noto, "icons.json")
    pack(tmp_path, "iconify-json-noto-1.3.0.tgz", {})
    with pytest.raises(InputError, match="more than once"):
        read_file(tmp_path, noto, "icons.json")


@pytest.mark.parametrize(
    ("icons", "said"),
    [
        ({"width": 32, "icons": {}}, "holds no drawings"),
        ({"width": 32, "icons": []}, "icons must be"),
        ({"width": "wide", "icons": {"a": {}}}, "must be"),
        ({"width": 32}, "icons must be"),
    ],
)
def test_damaged_icons(tmp_path, noto, icons, said):
    write_package(tmp_path, noto, icons=icons)
    with pytest.raises(InputError, match=said):
        read_icons(tmp_path, noto)


def test_drawings_are_found_by_character_and_by_name(tmp_path):
    sets, _ = declared()
    for name in ("noto", "emojione", "fxemoji"):
        write_package(tmp_path, sets[name])
    redapple = {"width": 32, "height": 32, "icons": {"redapple": {"body": "<g/>"}}}
    write_package(tmp_path, sets["fxemoji"], icons=redapple)
    icons = {name: read_icons(tmp_path, sets[name]) for name in ("noto", "emojione", "fxemoji")}
    finder = Finder(list(icons.values()), {code_of("🐈"): "cat"})
    assert finder.find(icons["noto"], "🍎") == "red-apple"  # by its character
    assert finder.find(icons["emojione"], "🍎") == "red-apple"  # by the name that noto gives it
    assert finder.find(icons["fxemoji"], "🍎") == "redapple"
    assert finder.find(icons["fxemoji"], "🐈") is None
    assert not icons["emojione"].characters
    assert set(icons["noto"].characters.values()) == {name for name, _ in SHAPES.values()}


def test_fetching_takes_the_declared_versions_and_only_what_is_missing(tmp_path, noto, monkeypatch):
    calls = []

    def npm(command, cwd, **_):
        calls.append(command[-1])
        pack(Path(cwd), f"{command[-1].split('/')[1].rpartition('@')[0]}-1.0.0.tgz", {})
        os.rename(Path(cwd) / "noto-1.0.0.tgz", Path(cwd) / "iconify-json-noto-1.0.0.tgz")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(room.shutil, "which", lambda name: "/usr/bin/npm")
    monkeypatch.setattr(room.subprocess, "run", npm)
    assert fetch(tmp_path / "new", [noto]) == [noto.package]
    assert calls == [f"{noto.package}@{noto.version}"]
    assert fetch(tmp_path / "new", [noto]) == []


def test_fetching_that_cannot_work(tmp_path, noto, monkeypatch):
    monkeypatch.setattr(room.shutil, "which", lambda name: None)
    with pytest.raises(InputError, match="npm, which fetches the drawings, is not installed"):
        fetch(tmp_path, [noto])
    monkeypatch.setattr(room.shutil, "which", lambda name: "/usr/bin/npm")
    failed = subprocess.CompletedProcess([], 1, "", "npm error code E404\nnot found")
    monkeypatch.setattr(room.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(InputError, match="failed: npm error code E404 not found"):
        fetch(tmp_path, [noto])


def test_drawings_that_show_something_else_are_not_taken(tmp_path):
    streamline = declared()[0]["streamline"]
    assert "turkey" in streamline.wrong  # its flag
    icons = {name: {"body": "<g/>"} for name in ("turkey", "cat")}
    write_package(tmp_path, streamline, icons={"width": 32, "height": 32, "icons": icons})
    read = read_icons(tmp_path, streamline)
    finder = Finder([read], {code_of("🦃"): "turkey", code_of("🐈"): "cat"})
    assert finder.find(read, "🐈") == "cat"
    assert finder.find(read, "🦃") is None
