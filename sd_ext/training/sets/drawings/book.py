"""All drawings of all concepts, rendered once: a folder of transparent PNGs with what is known of each."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sd_ext.declared import make
from sd_ext.errors import InputError
from sd_ext.plain_files import PICTURE_BYTES, read_bytes
from sd_ext.reading import read_json_lines
from sd_ext.training.data.items import inside
from sd_ext.training.sets.drawings.colours import can_become, main_colour
from sd_ext.training.sets.drawings.concepts import Concept
from sd_ext.training.sets.drawings.held_out import DRAWINGS, STYLE, TRAIN, HeldOut
from sd_ext.training.sets.drawings.icons import Finder, Icons, code_of, plain_code, read_icons
from sd_ext.training.sets.drawings.packages import Package, read_packed_json
from sd_ext.training.sets.drawings.svg import fitted, render, resvg

FOLDER = "drawings"
SEEN = 40  # pixels at which colours are judged
STANDS_OUT = 0.5  # share from which on the main colour is the drawing's colour
CAN_TURN = 0.38  # and from which on it is tried in others
MOST_TAGS = 6


@dataclass(frozen=True)
class Drawing:
    """One drawing, as a line of `metadata.jsonl` says it.

    Args:
        file_name: in the folder of drawings.
        text: its caption, the concept.
        split: "train", "drawings" (held out) or "style" (of a set that is held out).
        concept, names, kind: see `Concept`.
        tags: more words for it, of emojibase.
        style, set, licence: of its set; see `sets.toml`.
        emoji: the character it draws.
        main: most of its colour; what `becomes` turns.
        colour: the same, if it stands out; else empty.
        becomes: the colours that it can be drawn in.
    """

    file_name: str
    text: str
    split: str
    concept: str
    names: tuple[str, ...]
    kind: str
    tags: tuple[str, ...]
    style: str
    set: str
    licence: str
    emoji: str
    main: str
    colour: str
    becomes: tuple[str, ...]


@dataclass
class Book:
    """The drawings of a folder; pictures are read when wanted, and kept.

    Args:
        folder: with `metadata.jsonl` and the files.
        drawings: what it lists.
    """

    folder: Path
    drawings: Sequence[Drawing]
    _seen: dict[str, np.ndarray] = field(default_factory=dict)

    def pixels(self, drawing: Drawing) -> np.ndarray:
        """(size, size, 4) uint8, red, green, blue and opacity, not to be changed.

        Raises:
            InputError: the file is gone or damaged.
        """
        name = drawing.file_name
        if name not in self._seen:
            path = inside(self.folder, name, f"{self.folder}/metadata.jsonl")
            try:
                data = read_bytes(path, PICTURE_BYTES, self.folder)
                with Image.open(io.BytesIO(data)) as picture:
                    self._seen[name] = np.asarray(picture.convert("RGBA"))
            except Exception as error:  # of a dozen decoders, each with errors of its own
                raise InputError(f"{path} is no drawing ({error}); draw the set anew") from None
        return self._seen[name]


def read_book(folder: Path) -> Book:
    """The drawings that `write_book` wrote, or those of the set in whose folder they lie.

    Raises:
        InputError: there are none, or their metadata is damaged.
    """
    inner = folder / FOLDER
    folder = inner if inner.is_dir() else folder
    lines = read_json_lines(folder / "metadata.jsonl")
    drawings = [make(Drawing, line, where) for where, line in lines]
    if not drawings:
        raise InputError(f"{folder} lists no drawings")
    return Book(folder, drawings)


# ---- making it -------------------------------------------------------------------------------------------------------


def read_words(folder: Path, package: Package) -> tuple[dict[str, str], dict[str, tuple[str, ...]]]:
    """(names, tags) of characters by their code points, in English, as emojibase has them."""
    rows = read_packed_json(folder, package, "en/data.json", list[dict[str, Any]])
    rows = [row for row in rows if isinstance(row.get("hexcode"), str) and isinstance(row.get("label"), str)]
    if not rows:
        raise InputError(f"en/data.json of {package.package} in {folder} holds no names of emoji")
    labels = {plain_code(row["hexcode"]): row["label"] for row in rows}
    tags = {plain_code(row["hexcode"]): tuple(map(str, row.get("tags") or ())) for row in rows}
    return labels, tags


def tags_of(concept: Concept, tags: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    """A concept's words beside its names: those that most of its characters have come first."""
    words = [tag for emoji in concept.emoji for tag in tags.get(code_of(emoji), ()) if tag.replace(" ", "").isalpha()]
    counted = Counter(word.lower() for word in words if word.lower() not in concept.names)
    return tuple(sorted(counted, key=lambda word: -counted[word])[:MOST_TAGS])


def write_book(
    new: Path, packages: Path, concepts: Iterable[Concept], sets: Sequence[Package], words: Package,
    held_out: HeldOut, size: int,
) -> tuple[list[dict[str, Any]], list[str]]:  # fmt: skip
    """Render every set's drawings of every concept into an empty folder.

    Args:
        new: to fill with `SET/concept-code.png`.
        packages: the folder of packages.
        concepts, sets, words, held_out: as declared.
        size: height and width in pixels.

    Returns:
        (lines of `metadata.jsonl`, one sentence for each drawing that could not be used).

    Raises:
        InputError: packages are missing or not what they should be, or nothing could be drawn.
    """
    resvg()
    labels, tags = read_words(packages, words)
    icons = [read_icons(packages, each) for each in sets]
    finder, lines, problems = Finder(icons, labels), [], []
    for concept in concepts:
        more = tags_of(concept, tags)
        for each in icons:
            for emoji in concept.emoji:
                name = finder.find(each, emoji)
                if name is None:
                    continue
                try:
                    pixels = render(each.svg(name), size)
                except InputError as problem:
                    problems.append(f"{each.package.package}, {name}: {problem}")
                    continue
                lines.append(_written(new, pixels, concept, emoji, each, more, held_out))
    if not lines:
        raise InputError(
            f"{packages} holds no drawing of any concept" + (f"; first: {problems[0]}" if problems else "")
        )
    return lines, problems


def _written(
    new: Path, pixels: np.ndarray, concept: Concept, emoji: str, icons: Icons, tags: tuple[str, ...],
    held_out: HeldOut,
) -> dict[str, Any]:  # fmt: skip
    package = icons.package
    small = np.asarray(fitted(Image.fromarray(pixels), SEEN))
    main, share = main_colour(small)
    becomes = can_become(small, main, STANDS_OUT) if share >= CAN_TURN else ()
    kept_apart = DRAWINGS if held_out.drawing(concept.name, package.name) else TRAIN
    name = f"{package.name}/{concept.name.replace(' ', '-')}-{code_of(emoji)}.png"
    (new / package.name).mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(new / name)
    drawing = Drawing(
        name, concept.name, STYLE if package.use == "held_out" else kept_apart, concept.name, concept.names,
        concept.kind, tags, package.style, package.name, package.licence, emoji, main,
        main if share >= STANDS_OUT else "", becomes,
    )  # fmt: skip
    return asdict(drawing)
