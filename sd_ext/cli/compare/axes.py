"""From options with several values to axes, and from axes to a grid of recipes."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import InputError, UnknownNameError
from ..additions import split_strengths
from ..checks import split_option
from ..request import Recipe
from .asked import Asked

MOST_CELLS = 20_000
SMALL_FIRST = "prompt", "models", "seeds", "lora", "unet", "grids", "guidance", "samplers", "steps"
"""Which setting goes to the pages, where nothing is said; from the other end, which to the columns."""


@dataclass(frozen=True)
class Value:
    """One value of a setting.

    Args:
        label: how it is shown.
        changes: what it sets of a recipe. Tuples add to what others set.
    """

    label: str
    changes: Mapping[str, Any]


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes.

    Args:
        name: what it is called: the option without hyphens, of a LoRA or an option of the U-Net its own name.
        values: at least one.
        kind: the option that it came from, such as "lora".
    """

    name: str
    values: tuple[Value, ...]
    kind: str = ""

    @property
    def varies(self) -> bool:
        """Whether there are several values."""
        return len(self.values) > 1


NOTHING = Axis("", (Value("", {}),))
"""The axis of a grid that is one row, one column or one page."""


@dataclass(frozen=True)
class Grid:
    """What is compared.

    Args:
        columns, rows, pages: the axes; `NOTHING` where nothing varies.
        fixed: the settings with one value.
        base: all other settings of a recipe.
        order: the names of all settings as they were given, which is the order of LoRAs.
    """

    columns: Axis
    rows: Axis
    pages: Axis
    fixed: tuple[Axis, ...]
    base: Mapping[str, Any]
    order: tuple[str, ...]

    def recipe(self, page: int, row: int, column: int) -> Recipe:
        """The recipe of one cell, by its place."""
        axes = (self.pages, page), (self.rows, row), (self.columns, column), *((axis, 0) for axis in self.fixed)
        made: dict[str, Any] = dict(self.base)
        given = ((axis, number) for axis, number in axes if axis.name)
        for axis, number in sorted(given, key=lambda each: self.order.index(each[0].name)):
            for name, value in axis.values[number].changes.items():
                made[name] = (*made.get(name, ()), *value) if isinstance(value, tuple) else value
        return Recipe(**made)

    @property
    def shape(self) -> tuple[int, int, int]:
        """How many pages, rows and columns there are."""
        return len(self.pages.values), len(self.rows.values), len(self.columns.values)

    def places(self) -> Iterator[tuple[int, int, int]]:
        """(page, row, column) of every cell."""
        pages, rows, columns = map(range, self.shape)
        return itertools.product(pages, rows, columns)


def axes_of(asked: Asked) -> list[Axis]:
    """The settings that were given, each with its values.

    Raises:
        InputError: a value cannot be read, or is given twice.
    """
    whole: Callable[[str], Any] = int
    axes = [
        _axis("prompt", asked.prompt, lambda text: {"prompt": text}),
        _axis("samplers", _split(asked.samplers), lambda text: {"sampler": text}),
        _axis("grids", _split(asked.grids), lambda text: {"grid": text}),
        _axis("steps", _split(asked.steps), lambda text: {"steps": _number("steps", text, whole)}),
        _axis("guidance", _split(asked.guidance), lambda text: {"guidance": _number("guidance", text, float)}),
        _axis("seeds", _split(asked.seeds), lambda text: {"seed": _number("seeds", text, whole)}),
        _axis("unet", _split(asked.unet), lambda text: {"unet": text}),
        _axis("models", _split(asked.models), lambda text: {"model": text}),
        *map(_option_axis, asked.unet_option),
        *map(_lora_axis, asked.lora),
    ]
    axes = [axis for axis in axes if axis.values]
    names = [axis.name for axis in axes]
    for axis in axes:
        if names.count(axis.name) > 1:
            raise InputError(f"{axis.name} is given twice; give all its values at once, such as {axis.name}:0,0.5,1")
        labels = [value.label for value in axis.values]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise InputError(f"{axis.name}: {twice!r} is given twice; once is enough")
    return axes


def _axis(name: str, texts: Sequence[str], changes: Callable[[str], Mapping[str, Any]]) -> Axis:
    values = (Value(_shown(name, text), changes(text)) for text in texts)
    return Axis(name, tuple(values), name)


def _shown(name: str, text: str) -> str:
    return (Path(text).name or text) if name == "models" else text


def _split(texts: Sequence[str]) -> list[str]:
    """The values of an option: divided at commas that stand in no brackets; the name of a file that is there is one."""
    made = []
    for text in texts:
        pieces = [text] if os.path.exists(os.path.expanduser(text)) else re.split(r",(?![^\[]*\])", text)
        if not all(piece.strip() for piece in pieces):
            raise InputError(f"{text!r} holds an empty value; write values with commas between, such as 4,8,20")
        made += [piece.strip() for piece in pieces]
    return made


def _number(name: str, text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text)
    except ValueError:
        what = "whole numbers, such as 4,8,20" if kind is int else "numbers, such as 1,4,7.5"
        raise InputError(f"--{name} {text!r} cannot be read; write {what}") from None


def _option_axis(text: str) -> Axis:
    name, values = split_option(text)
    return Axis(
        name, tuple(Value(value, {"unet_option": (f"{name}={value}",)}) for value in _split([values])), "unet_option"
    )


def _lora_axis(text: str) -> Axis:
    """`FILE:0,0.5,1`; `FILE:0.5:0.3` and the like are one value."""
    source, colon, strengths = text.rpartition(":")
    if not (colon and "," in strengths) or os.path.exists(os.path.expanduser(text)):
        name = Path(split_strengths(text, 2)[0]).stem
        return Axis(name, (Value(text, {"lora": (text,)}),), "lora")
    values = tuple(
        Value(each, {"lora": (f"{source}:{_number('lora', each, float):g}",)}) for each in _split([strengths])
    )
    return Axis(Path(source).stem, values, "lora")


def grid_of(axes: Sequence[Axis], base: Mapping[str, Any], places: Mapping[str, str | None]) -> Grid:
    """Lay axes out.

    Args:
        axes: as `axes_of` gives them.
        base: the other settings of the recipes.
        places: "columns", "rows", "pages" -> the name of the axis that goes there; None leaves it to us.

    Raises:
        InputError: nothing varies, more than three settings do, a name is none of them, or there are too many cells.
    """
    varying = {axis.name: axis for axis in axes if axis.varies}
    if not varying:
        raise InputError(
            "every setting has one value, so there is nothing to compare: give one or two of them several, such as "
            "--samplers euler,auto --steps 4,8,20"
        )
    if len(varying) > 3:
        raise InputError(f"{', '.join(varying)} vary, and a grid has columns, rows and pages: let one have one value")
    chosen = _chosen(varying, places)
    columns, rows, pages = (varying.get(chosen.get(place, ""), NOTHING) for place in ("columns", "rows", "pages"))
    grid = Grid(
        columns,
        rows,
        pages,
        tuple(axis for axis in axes if not axis.varies),
        base,
        tuple(axis.name for axis in axes),
    )
    cells = math.prod(grid.shape)
    if cells > MOST_CELLS:
        raise InputError(f"{cells:,} pictures are too many for a page; choose at most {MOST_CELLS:,}")
    return grid


def _chosen(varying: Mapping[str, Axis], places: Mapping[str, str | None]) -> dict[str, str]:
    """Which axis goes where: place -> name. Numbers go across, names down, what is looked at singly on pages."""
    chosen = {place: name for place, name in places.items() if name is not None}
    for place, name in chosen.items():
        if name not in varying:
            raise UnknownNameError(f"setting that varies, for --{place},", name, varying)
    if len(set(chosen.values())) < len(chosen):
        raise InputError("--columns, --rows and --pages name one setting twice; give each another")
    left = sorted((name for name in varying if name not in chosen.values()), key=lambda name: _rank(varying[name]))
    order = ("columns", "rows", "pages") if len(varying) < 3 else ("columns", "pages", "rows")
    for place in order:
        if left and place not in chosen:
            chosen[place] = left.pop(0 if place == "pages" else -1)
    return chosen


def _rank(axis: Axis) -> int:
    known = axis.kind if axis.kind in SMALL_FIRST else "unet"
    return SMALL_FIRST.index(known)
