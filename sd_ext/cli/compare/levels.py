"""Where the steps of each sampler fall, as a drawing in the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

from ...errors import printable
from .draw import Cell
from .plot import COLOURS
from .told import Comparison

MOST_ROWS = 24
WIDTH, ROW, TOP, BOTTOM, LEFT, RIGHT = 860, 26, 8, 46, 24, 290

Row = tuple[str, int, tuple[float, ...]]
"""Sampler and grid, the number of calls, and sigma / alpha at each."""


def levels(comparison: Comparison) -> str:
    """The drawing: a line for each sampler, grid and number of calls; "" where they do not vary or are not known."""
    varying = {axis.kind for axis in comparison.axes} & {"samplers", "grids", "steps", "models"}
    rows = list(dict.fromkeys(filter(None, map(_row, comparison.cells.values()))))
    if not varying or not rows:
        return ""
    left_out = f" {len(rows) - MOST_ROWS} more are not shown." if len(rows) > MOST_ROWS else ""
    rows = rows[:MOST_ROWS]
    values = [math.log10(value) for _, _, sigmas in rows for value in sigmas]
    low, high = min(values) - 0.05, max(values) + 0.05
    colours = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(dict.fromkeys(name for name, _, _ in rows))}

    def across(value: float) -> float:
        return LEFT + (high - math.log10(value)) / (high - low) * (WIDTH - LEFT - RIGHT)

    bottom = TOP + ROW * len(rows)
    drawn = _scale([10.0**n for n in range(math.ceil(low), math.floor(high) + 1)], across, bottom)
    for number, (name, calls, sigmas) in enumerate(rows):
        y, colour = TOP + ROW * (number + 0.5), colours[name]
        ends = f'x1="{across(sigmas[0]):.1f}" x2="{across(sigmas[-1]):.1f}" y1="{y}" y2="{y}"'
        drawn.append(f'<line {ends} stroke="{colour}" opacity="0.35"/>')
        drawn += [f'<circle cx="{across(value):.1f}" cy="{y}" r="3.5" fill="{colour}"/>' for value in sigmas]
        label = f"{name}, {calls} call{'s' if calls != 1 else ''}"
        drawn.append(f'<text x="{WIDTH - RIGHT + 14}" y="{y + 5}" style="fill:{colour}">{escape(label)}</text>')
    size = f'viewBox="0 0 {WIDTH} {bottom + BOTTOM}" width="{WIDTH}" height="{bottom + BOTTOM}"'
    return (
        f'<div class="plot"><h2>Where the steps fall</h2><svg {size} role="img" aria-label="noise at each call">'
        f"{''.join(drawn)}</svg><p>Each dot is a network call.{left_out}</p></div>"
    )


def _row(cell: Cell) -> Row | None:
    """What a picture says of its steps; None where it says nothing, as one drawn by an earlier version."""
    made = cell.record.made if cell.record else {}
    sigmas = made.get("sigmas")
    if not isinstance(sigmas, list) or not sigmas or not all(type(v) is float and v > 0 for v in sigmas):
        return None
    name = " ".join(str(each) for each in (made.get("sampler") or made.get("scheduler"), made.get("grid")) if each)
    return printable(name), cell.recipe.steps, tuple(sigmas)


def _scale(ticks: Sequence[float], across: Any, bottom: float) -> list[str]:
    """Lines and numbers of the scale."""
    drawn = []
    for tick in ticks:
        x = across(tick)
        drawn.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}" stroke="currentColor" opacity="0.15"/>')
        drawn.append(f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(f'<text x="{middle:.1f}" y="{bottom + 38}" text-anchor="middle">noise, sigma / alpha</text>')
    return drawn
