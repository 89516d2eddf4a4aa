"""Packages as npm leaves them, with a handful of drawings that the tests write themselves."""

import json
from pathlib import Path

import pytest

from sd_ext.training.sets.drawings.book import Book, read_book, write_book
from sd_ext.training.sets.drawings.concepts import read_concepts
from sd_ext.training.sets.drawings.folder import write_lines
from sd_ext.training.sets.drawings.held_out import read_held_out
from sd_ext.training.sets.drawings.packages import declared, usable

SHAPES = {  # emoji -> name, drawing
    "🍎": ("red-apple", '<circle cx="16" cy="18" r="13" fill="#e0262f"/><rect x="14" y="2" width="3" height="6"/>'),
    "🐈": ("cat", '<path d="M2 30V6l8 6h12l8-6v24z" fill="#ff8a1c"/><circle cx="11" cy="20" r="2"/>'),
    "⭐": ("star", '<path d="M16 1l4 10h11l-9 7 4 12-10-7-10 7 4-12-9-7h11z" fill="#ffd12b"/>'),
    "🐟": ("fish", '<ellipse cx="14" cy="16" rx="13" ry="9" fill="#2b6fe3"/><path d="M26 16l6-7v14z" fill="#1f419c"/>'),
    "🌳": (
        "deciduous-tree",
        '<circle cx="16" cy="12" r="11" fill="#35a53a"/><path d="M14 20h4v11h-4z" fill="#5c3a22"/>',
    ),
    "🚗": ("automobile", '<rect y="8" width="32" height="14" fill="#e0262f"/><circle cx="8" cy="24" r="4"/>'),
    "🐶": ("dog-face", '<circle cx="16" cy="16" r="14" fill="#b57f4e"/><circle cx="11" cy="13" r="2"/>'),
    "🍇": ("grapes", '<circle cx="11" cy="12" r="8" fill="#8a44c8"/><circle cx="20" cy="20" r="9" fill="#8a44c8"/>'),
}


def code(emoji: str) -> str:
    return f"{ord(emoji):x}"


def write_package(folder: Path, declared_as, /, **changes) -> Path:
    """One package with the drawings above; its files can be changed: `icons={...}`, `package={...}`."""
    place = folder / "node_modules" / declared_as.package
    place.mkdir(parents=True, exist_ok=True)
    icons = {name: {"body": body} for name, body in SHAPES.values()}
    says_characters = declared_as.name in ("noto", "fluent-flat", "twemoji", "fluent-high-contrast")
    files = {
        "package": {"name": declared_as.package, "version": declared_as.version, "license": declared_as.licence},
        "icons": {"width": 32, "height": 32, "icons": icons},
        "chars": {code(emoji): name for emoji, (name, _) in SHAPES.items()} if says_characters else {},
    }
    for name, value in {**files, **changes}.items():
        (place / f"{name}.json").write_text(json.dumps(value))
    return place


def write_words(folder: Path) -> Path:
    words = declared()[1]
    place = folder / "node_modules" / words.package / "en"
    place.mkdir(parents=True)
    about = {"name": words.package, "version": words.version, "license": words.licence}
    (place.parent / "package.json").write_text(json.dumps(about))
    rows = [
        {"hexcode": code(emoji).upper(), "label": name.replace("-", " "), "tags": ["nice", name.split("-")[0], "x2"]}
        for emoji, (name, _) in SHAPES.items()
    ]
    (place / "data.json").write_text(json.dumps(rows))
    return place / "data.json"


@pytest.fixture
def packages(tmp_path):
    """A folder with every set and the words."""
    pytest.importorskip("resvg_py", reason="drawings are rendered by resvg-py")
    folder = tmp_path / "packages"
    for package in usable():
        write_package(folder, package)
    write_words(folder)
    return folder


@pytest.fixture(scope="session")
def book(tmp_path_factory) -> Book:
    """The drawings above, of every set."""
    pytest.importorskip("resvg_py", reason="drawings are rendered by resvg-py")
    folder = tmp_path_factory.mktemp("book")
    for package in usable():
        write_package(folder / "packages", package)
    write_words(folder / "packages")
    made = folder / "drawings"
    made.mkdir()
    words, held_out = declared()[1], read_held_out()
    lines, problems = write_book(made, folder / "packages", read_concepts(), usable(), words, held_out, 48)
    assert not problems
    write_lines(made / "metadata.jsonl", lines)
    return read_book(folder)
