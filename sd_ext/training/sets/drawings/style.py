"""A small set in one style, to train a LoRA on: one drawing of each of some things, alone on white, captioned.

The set that is shipped (`sd_ext/training/shipped/high-contrast`) is made so, of a style that no model here is trained
on:

    sd-ext train data --packages npm --fetch --style "high contrast" --pictures 60 --out high-contrast
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from sd_ext import whole
from sd_ext.errors import InputError
from sd_ext.training.sets.drawings.book import FOLDER, Book, Drawing, read_book, write_book
from sd_ext.training.sets.drawings.concepts import English, read_concepts
from sd_ext.training.sets.drawings.folder import attribution, check_setting, check_untaken, write_lines
from sd_ext.training.sets.drawings.grammar import read_grammar
from sd_ext.training.sets.drawings.held_out import DRAWINGS, read_held_out
from sd_ext.training.sets.drawings.packages import declared, of_style
from sd_ext.training.sets.drawings.paint import paint
from sd_ext.training.sets.drawings.scene import Scene

FORMS = ("{a styled thing}", "{thing}, {style}", "{styled thing}", "{a thing}, {style} style")  # one after the other


def write_style(out: Path, packages: Path, style: str, pictures: int, size: int = 64, seed: int = 0) -> list[str]:
    """Draw things in one style into a new folder, which appears when all is there.

    Args:
        out: the folder.
        packages: the folder of npm packages; only the style's and that of the words are needed.
        style: one that `sets.toml` names.
        pictures: at most so many, each of another thing, spread evenly over `concepts.toml`.
        size: height and width in pixels, at most 256.
        seed: of how large each is drawn, and where.

    Returns:
        What to say: one line each.

    Raises:
        InputError: an unknown style, the folder is taken, packages are missing or not what they should be, or a
            setting cannot work.
    """
    check_untaken(out)
    check_setting("pictures", pictures, 1, 10**7)
    check_setting("size", size, 32, 256)
    check_setting("seed", seed, 0, 2**32)
    sets, grammar = of_style(style), read_grammar()
    with whole.folder(out) as new:
        (new / FOLDER).mkdir()
        lines, problems = write_book(
            new / FOLDER, packages, read_concepts(), sets, declared()[1], read_held_out(), 2 * size
        )
        write_lines(new / FOLDER / "metadata.jsonl", lines)
        rows = _write_pictures(new, read_book(new), style, pictures, size, seed, grammar.speech)
        shutil.rmtree(new / FOLDER)
        write_lines(new / "metadata.jsonl", rows)
        (new / "ATTRIBUTION.md").write_text(attribution(sets), encoding="utf-8")
    few = f" (there are no more in this style; {pictures} were asked for)" if len(rows) < pictures else ""
    return [f"{len(rows)} pictures in {out}{few}", *(f"left out: {problem}" for problem in problems)]


def chosen(book: Book, count: int) -> list[Drawing]:
    """So many drawings at most, each of another thing, spread evenly over all; held-out ones are left out."""
    first = {drawing.concept: drawing for drawing in reversed(book.drawings) if drawing.split != DRAWINGS}
    ordered = [drawing for drawing in book.drawings if first.get(drawing.concept) is drawing]
    if not ordered:
        raise InputError("all drawings in this style are held out (held_out.toml)")
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered))).round().astype(int)
    return [ordered[place] for place in places]


def _write_pictures(
    new: Path, book: Book, style: str, count: int, size: int, seed: int, speech: English
) -> list[dict[str, Any]]:
    rows = []
    for number, drawing in enumerate(chosen(book, count)):
        scene = Scene("one", (drawing,), ("",), 1, style, "white")
        name = drawing.concept.replace(" ", "-") + ".png"
        paint(scene, book, size, np.random.default_rng([seed, number])).save(new / name, optimize=True)
        text = caption(drawing.concept, style, number, speech)
        rows.append({"file_name": name, "text": text, "concept": drawing.concept, "set": drawing.set})
    return rows


def caption(thing: str, style: str, number: int, speech: English) -> str:
    """The caption of picture `number`: "a high contrast cat", "dog, high contrast", ..."""
    styled = f"{style} {thing}"
    slots = {
        "thing": thing, "a thing": speech.article(thing, thing), "style": style,
        "styled thing": styled, "a styled thing": speech.article(styled, thing),
    }  # fmt: skip
    return FORMS[number % len(FORMS)].format_map(slots)
