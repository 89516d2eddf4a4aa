"""The grammar (`grammar.toml`): draws what a picture shows. `captions` says it, `paint` paints it.

All that is random about a picture depends on (seed, number) alone, so that picture 7 is the same whether a thousand or
a million are drawn, and more of them are drawn by going on counting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from sd_ext.declared import check, make
from sd_ext.errors import InputError
from sd_ext.reading import read_toml
from sd_ext.training.sets.drawings.book import Book, Drawing
from sd_ext.training.sets.drawings.colours import NAMES
from sd_ext.training.sets.drawings.concepts import English
from sd_ext.training.sets.drawings.held_out import STYLE, HeldOut
from sd_ext.training.sets.drawings.scene import COLOURED, Scene

DECLARED = Path(__file__).parent / "grammar.toml"
T = TypeVar("T")
Weights = dict[str, float]
MADE = {"silhouette", "pixels"}  # styles that are made of any drawing
TRIES = 200  # to find something that fits


@dataclass(frozen=True)
class Grammar:
    """See the file: each field is one of its tables."""

    shows: Weights
    number: Weights
    styles: Weights
    colour: Weights
    ground: Weights
    size: Weights
    place: Weights
    words: Weights
    one: Weights
    several: Weights
    beside: Weights
    above: Weights
    apart: Weights
    alone: Weights
    style_before: dict[str, list[str]]
    style_behind: dict[str, list[str]]
    style_forms: dict[str, list[str]]
    said_ground: dict[str, list[str]]
    scenery: dict[str, dict[str, Any]]
    size_said: dict[str, list[str]]
    colour_said: dict[str, list[str]]
    number_said: dict[str, list[str]]
    english: dict[str, Any]

    def __post_init__(self) -> None:
        for name, table in vars(self).items():
            if name in WEIGHTED and (min(table.values(), default=0) < 0 or not sum(table.values())):
                raise InputError(f"[{name}] needs weights from 0 on, and one above 0; it has {table}")
        if strange := set(self.colour_said) - set(NAMES):
            raise InputError(f"[colour_said] has {min(strange)!r}, which is no colour; there are {', '.join(NAMES)}")
        for name, entry in self.scenery.items():
            check(entry.get("weight"), float, "[scenery]", name, "weight")
            check(entry.get("said"), list[str], "[scenery]", name, "said")
            check(entry.get("hides", []), list[str], "[scenery]", name, "hides")

    @cached_property
    def speech(self) -> English:
        return make(English, self.english, "grammar.toml", "english")

    def sceneries(self, seen: Sequence[str]) -> Weights:
        """Those that do not hide things of these colours."""
        return {n: entry["weight"] for n, entry in self.scenery.items() if not {*entry.get("hides", [])} & {*seen}}


WEIGHTED = {name for name, kind in Grammar.__annotations__.items() if kind == "Weights"}  # they are text here


def read_grammar(path: Path = DECLARED) -> Grammar:
    """The grammar of a file.

    Raises:
        InputError: a table is missing, unknown, or not what it should be.
    """
    table = read_toml(path)
    if strange := sorted(set(table) - set(Grammar.__annotations__)):
        raise InputError(f"{path}: [{strange[0]}] is no table of the grammar")
    return make(Grammar, table, str(path))


def pick(draw: np.random.Generator, weights: Mapping[str, float]) -> str:
    """A key, as likely as its weight says."""
    place, names = draw.random() * sum(weights.values()), list(weights)
    for name in names:
        place -= weights[name]
        if place < 0:
            return name
    return names[-1]


def any_of(draw: np.random.Generator, several: Sequence[T]) -> T:
    """One of several, each as likely."""
    return several[int(draw.integers(len(several)))]


class Scenes:
    """Draws scenes: `scenes.draw(random)`.

    Args:
        book: the drawings; those of held-out styles are not used.
        grammar, held_out: as declared.
    """

    def __init__(self, book: Book, grammar: Grammar, held_out: HeldOut):
        self.grammar, self.held_out = grammar, held_out
        self.by_style: dict[str, dict[str, list[Drawing]]] = {}  # style -> concept -> drawings
        for drawing in book.drawings:
            if drawing.split != STYLE:
                self.by_style.setdefault(drawing.style, {}).setdefault(drawing.concept, []).append(drawing)
        self.styles = {style: weight for style, weight in grammar.styles.items() if style in self.by_style}
        if not self.styles:
            raise InputError(f"{book.folder} has drawings in none of the grammar's styles: {', '.join(grammar.styles)}")

    def draw(self, draw: np.random.Generator) -> Scene:
        """What a picture shows."""
        shows = pick(draw, self.grammar.shows)
        style = made = shows if shows in MADE else ""
        shows = "one" if made else shows
        of = pick(draw, self.styles)
        style = made or of
        if shows == "alone":
            return Scene("alone", (), (), 0, style, *self._ground(draw, (), style, said=True))
        drawings = self._things(draw, of, 2 if shows == "two" else 1, countable=shows == "several")
        if len(drawings) < (2 if shows == "two" else 1):  # the style has too few things for that
            shows, drawings = "one", self._things(draw, of, 1, countable=False)
        colours = tuple(self._colour(draw, drawing, made) for drawing in drawings)
        number = int(pick(draw, self.grammar.number)) if shows == "several" else len(drawings)
        seen = [colour or drawing.main for colour, drawing in zip(colours, drawings, strict=True)]
        ground = self._ground(draw, seen, style)
        return Scene(
            shows, drawings, colours, number if shows == "several" else 1, style, *ground,
            size=pick(draw, self.grammar.size) if shows == "one" and not made else "usual",
            place=pick(draw, self.grammar.place) if shows == "two" else "",
        )  # fmt: skip

    def _things(self, draw: np.random.Generator, style: str, count: int, countable: bool) -> tuple[Drawing, ...]:
        """Drawings of different things in one style, and of one set if there are both."""
        known = self.by_style[style]
        speech, names, found = self.grammar.speech, list(known), []
        for _ in range(TRIES):
            name = any_of(draw, names)
            if name not in (d.concept for d in found) and (speech.counted(name) or not countable):
                same = [d for d in known[name] if found and d.set == found[0].set]
                found.append(any_of(draw, same or known[name]))
            if len(found) == count:
                break
        return tuple(found)

    def _colour(self, draw: np.random.Generator, drawing: Drawing, made: str) -> str:
        """The colour a thing is drawn in; "" as it is. Silhouettes are of one colour."""
        if made == "silhouette":
            return "black" if draw.random() < 0.4 else any_of(draw, [n for n in NAMES if n != "white"])
        way = pick(draw, self.grammar.colour)
        if way == "turned" and drawing.becomes:
            return any_of(draw, drawing.becomes)
        return drawing.colour if way == "said" else ""

    def _ground(
        self, draw: np.random.Generator, seen: Sequence[str], style: str, said: bool = False
    ) -> tuple[str, str]:
        """(ground, its colour), such that what is drawn stands out from it.

        Args:
            draw: random numbers.
            seen: the colours of what is drawn.
            style: of it; what is made of a drawing is put on plain ground.
            said: only grounds that have a name.
        """
        sceneries = {} if style in MADE else self.grammar.sceneries(seen)
        hidden = {"black", "white", "tint", "dark"} if said else set()
        hidden |= {"white", "tint"} if "white" in seen else set()
        hidden |= {"dark", "black"} if {"black", "purple", "brown", "blue"} & set(seen) else set()
        hidden |= set() if sceneries else {"scenery"}
        weights = {ground: weight for ground, weight in self.grammar.ground.items() if ground not in hidden}
        ground = pick(draw, weights) if any(weights.values()) else "coloured"
        if ground == "scenery":
            return pick(draw, sceneries), ""
        if ground not in COLOURED:
            return ground, ""
        free = [name for name in NAMES if name not in (*seen, "black", "white")]
        return ground, any_of(draw, free)
