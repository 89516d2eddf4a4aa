"""The whole set as a folder: captioned pictures, the drawings they are made of, and whom to thank.

    OUT/metadata.jsonl              a line for each picture: file_name, text, split, and the facts (`Scene.facts`)
    OUT/pictures/000/000000.png     ...
    OUT/drawings/                   every drawing alone, transparent, with a `metadata.jsonl` of its own (`book`)
    OUT/sheet.png                   a look at the first pictures
    OUT/ATTRIBUTION.md              sets, authors, licences

Pictures are ordinary files with captions, so that every part of training, the cache of latents and other people's tools
read them as they read any folder. They are drawn anew by counting on: picture n depends on (seed, n) alone, so a set
of 100,000 is ten epochs of 10,000 of which no two are alike, and `first` continues it. `Artist` draws them without
files.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from sd_ext import whole
from sd_ext.errors import InputError
from sd_ext.training.sets.drawings.book import FOLDER, Book, read_book, write_book
from sd_ext.training.sets.drawings.captions import Speaker
from sd_ext.training.sets.drawings.concepts import read_concepts
from sd_ext.training.sets.drawings.grammar import Scenes, read_grammar
from sd_ext.training.sets.drawings.held_out import TRAIN, HeldOut, read_held_out
from sd_ext.training.sets.drawings.packages import Package, declared, usable
from sd_ext.training.sets.drawings.paint import paint
from sd_ext.training.sets.drawings.scene import Scene

BYTES = 9_000  # of a picture of 64 x 64 on the disk, blocks of the file system included
BOOK_BYTES = 96 * 2**20  # of all drawings
SHEET = (12, 8)  # columns and rows
IN_A_FOLDER = 1000


@dataclass(frozen=True)
class Drawn:
    """A picture, its caption and split, and what it shows."""

    picture: Image.Image
    caption: str
    split: str
    scene: Scene


class Artist:
    """Draws picture after picture: `Artist(book).draw(seed, number, size)`.

    Args:
        book: the drawings.
        held_out: what goes to other splits than "train"; None for what is declared.
    """

    def __init__(self, book: Book, held_out: HeldOut | None = None):
        self.book, self.held_out, grammar = book, held_out or read_held_out(), read_grammar()
        self.scenes, self.speaker = Scenes(book, grammar, self.held_out), Speaker(grammar, self.held_out)

    def draw(self, seed: int, number: int, size: int) -> Drawn:
        """Picture `number` of `seed`: the same whatever else was drawn; at another size only its pixels differ."""
        draw = np.random.default_rng([seed, number])
        scene = self.scenes.draw(draw)
        caption, split = self.speaker.say(scene, draw)
        return Drawn(paint(scene, self.book, size, draw), caption, split, scene)


def write_drawings(
    out: Path, packages: Path, pictures: int, size: int = 64, seed: int = 0, first: int = 0, quiet: bool = False
) -> list[str]:
    """Render drawings and pictures into a new folder, which appears when all is there.

    Args:
        out: the folder.
        packages: the folder of npm packages.
        pictures: how many.
        size: height and width in pixels, at most 256.
        seed: of what is drawn.
        first: number of the first picture: what was drawn before is not drawn again.
        quiet: no progress bars.

    Returns:
        What to say: one line each.

    Raises:
        InputError: the folder is taken, the disk too small or full, packages are missing or not what they should be,
            or a setting cannot work.
    """
    _check(out, pictures, size, seed, first)
    sets, words, held_out = usable(), declared()[1], read_held_out()
    book_size = max(128, size)
    with whole.folder(out) as new:
        (new / FOLDER).mkdir()
        lines, problems = write_book(new / FOLDER, packages, read_concepts(), sets, words, held_out, book_size)
        write_lines(new / FOLDER / "metadata.jsonl", lines)
        rows = _write_pictures(new, Artist(read_book(new), held_out), pictures, size, seed, first, quiet)
        write_lines(new / "metadata.jsonl", rows)
        (new / "ATTRIBUTION.md").write_text(attribution([*sets, words]), encoding="utf-8")
    splits = ", ".join(f"{count} {split}" for split, count in Counter(row["split"] for row in rows).most_common())
    said = [f"{pictures} pictures in {out} ({splits}), of {len(lines)} drawings"]
    return said + [f"left out: {problem}" for problem in problems]


def check_untaken(out: Path) -> None:
    """Raise `InputError` if there is something at `out`."""
    if (out.is_dir() and any(out.iterdir())) or out.is_file():
        raise InputError(f"{out} is there already; remove it or choose another folder")


def check_setting(name: str, value: int, low: int, high: int) -> None:
    """Raise `InputError` for a number out of its range."""
    if not low <= value <= high:
        raise InputError(f"{name} is {value}; it must be from {low} to {high}")


def _check(out: Path, pictures: int, size: int, seed: int, first: int) -> None:
    check_untaken(out)
    for name, value, low, high in (
        ("pictures", pictures, 1, 10**7), ("size", size, 32, 256), ("seed", seed, 0, 2**32), ("first", first, 0, 10**9)
    ):  # fmt: skip
        check_setting(name, value, low, high)
    parent = next(p for p in out.absolute().parents if p.exists())
    wanted = round(pictures * BYTES * (size / 64) ** 2 + BOOK_BYTES * (max(128, size) / 128) ** 2)
    if (free := shutil.disk_usage(parent).free) < wanted:
        raise InputError(
            f"{pictures} pictures take about {wanted / 1e6:,.0f} MB, and {parent} has {free / 1e6:,.0f} MB left: make "
            "room, or draw fewer"
        )


def _write_pictures(
    new: Path, artist: Artist, count: int, size: int, seed: int, first: int, quiet: bool
) -> list[dict[str, Any]]:
    rows, shown = [], []
    console = Console(stderr=True)
    numbers = range(first, first + count)
    for number in track(numbers, "drawing", console=console, disable=quiet or not console.is_terminal):
        drawn = artist.draw(seed, number, size)
        name = f"pictures/{number // IN_A_FOLDER:03d}/{number:06d}.png"
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        drawn.picture.save(new / name)
        rows.append({"file_name": name, "text": drawn.caption, "split": drawn.split, **drawn.scene.facts()})
        if len(shown) < SHEET[0] * SHEET[1] and drawn.split == TRAIN:
            shown.append(drawn.picture)
    sheet(shown, size).save(new / "sheet.png")
    return rows


def write_lines(new: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Fill a new file with one JSON object a line."""
    new.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def sheet(pictures: Sequence[Image.Image], size: int) -> Image.Image:
    """Pictures side by side, with a little room between them."""
    columns, step = SHEET[0], size + 4
    made = Image.new("RGB", (columns * step + 4, -(-max(1, len(pictures)) // columns) * step + 4), "#e4e4e4")
    for place, picture in enumerate(pictures):
        made.paste(picture, (4 + place % columns * step, 4 + place // columns * step))
    return made


def attribution(packages: Sequence[Package]) -> str:
    """Whom to thank, and for a model card: what CC BY asks to be said of what is made of the drawings."""
    rows = "\n".join(
        f"| {p.package} {p.version} | {p.style or 'words'} | {p.author} | {p.licence} | {p.source} |" for p in packages
    )
    return (Path(__file__).parent / "attribution.md").read_text(encoding="utf-8").format(rows=rows)
