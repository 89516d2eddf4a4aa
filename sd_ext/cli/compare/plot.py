"""Distance against calls, as a drawing in the page."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from html import escape

from .axes import NOTHING, Axis
from .told import Comparison, headed

COLOURS = "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#8a6d00", "#777777"
"""Told apart by people of any colour vision (Okabe and Ito)."""
MOST_LINES = 8
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 860, 400, 66, 50, 14, 210

Line = tuple[str, list[tuple[float, float]]]
Placing = Callable[[float, float], tuple[float, float]]


def plot(comparison: Comparison) -> str:
    """The drawing, or "" where the steps do not vary or nothing was measured.

    A line is the mean over pages; where the grid has further settings than steps, each of their values is a line.
    """
    lines = _lines(comparison)
    if not lines:
        return ""
    calls = sorted({x for _, points in lines for x, _ in points})
    values = [y for _, points in lines for _, y in points]
    low, high = math.log10(min(values)) - 0.05, math.log10(max(values)) + 0.05
    left, right = math.log(calls[0]), math.log(calls[-1])

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log(x) - left) / (right - left)
        up = (math.log10(y) - low) / (high - low)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    drawn = [*_frame(calls, _ticks(low, high), at)]
    ends = _apart([at(*points[-1])[1] for _, points in lines])
    for number, ((name, points), end) in enumerate(zip(lines, ends, strict=True)):
        colour, places = COLOURS[number], [at(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        drawn += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>' for x, y in places]
        x, y = WIDTH - RIGHT + 28, end
        start = f"{places[-1][0] + 6:.1f},{places[-1][1]:.1f} {x - 6:.1f},{y:.1f}"
        drawn.append(f'<polyline points="{start}" fill="none" stroke="{colour}" opacity="0.5"/>')
        drawn.append(f'<text x="{x:.1f}" y="{y + 5:.1f}" style="fill:{colour};font-weight:600">{escape(name)}</text>')
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    return (
        f'<div class="plot"><h2>Distance against network calls</h2><svg {size} role="img" '
        f'aria-label="distance to the picture of many calls, against calls">{"".join(drawn)}</svg></div>'
    )


def _lines(comparison: Comparison) -> list[Line]:
    """(name, [(calls, distance), ...]) of each line, points in order; at most as many lines as there are colours."""
    grid = comparison.grid
    axes: list[Axis] = [grid.pages, grid.rows, grid.columns]
    steps = next((number for number, axis in enumerate(axes) if axis.kind == "steps" and axis.varies), None)
    if steps is None:
        return []
    other = next((number for number in (1, 2, 0) if number != steps and axes[number].varies), None)
    found: dict[int, dict[int, list[float]]] = {}
    for place, cell in comparison.cells.items():
        if cell.distance:
            calls = cell.recipe.steps
            found.setdefault(0 if other is None else place[other], {}).setdefault(calls, []).append(cell.distance)
    axis = NOTHING if other is None else axes[other]
    lines = [
        (headed(axis, number), [(float(calls), sum(each) / len(each)) for calls, each in sorted(points.items())])
        for number, points in sorted(found.items())
        if len(points) > 1
    ]
    return lines[:MOST_LINES]


def _ticks(low: float, high: float) -> list[float]:
    """Round values between two powers of ten."""
    all_ticks = [step * 10.0**power for power in range(-8, 2) for step in (1, 2, 5)]
    return [tick for tick in all_ticks if low <= math.log10(tick) <= high]


def _frame(calls: Sequence[float], ticks: Sequence[float], place: Placing) -> list[str]:
    """Lines and numbers of both scales."""
    right = WIDTH - RIGHT
    drawn = []
    for tick in ticks:
        y = place(calls[0], tick)[1]
        drawn.append(f'<line x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" opacity="0.15"/>')
        drawn.append(f'<text x="{LEFT - 8}" y="{y + 5:.1f}" text-anchor="end">{100 * tick:g} %</text>')
    for each in calls:
        x = place(each, 10 ** (math.log10(ticks[0]) if ticks else 0))[0]
        drawn.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 24}" text-anchor="middle">{each:g}</text>')
    middle = (LEFT + right) / 2
    drawn.append(f'<text x="{middle:.1f}" y="{HEIGHT - 4}" text-anchor="middle">network calls</text>')
    return drawn


def _apart(heights: Sequence[float], least: float = 19.0) -> list[float]:
    """Heights of labels, moved so far apart that none covers another, in the same order from top to bottom."""
    order = sorted(range(len(heights)), key=lambda number: heights[number])
    made = list(heights)
    for before, after in itertools.pairwise(order):
        made[after] = max(made[after], made[before] + least)
    over = max(made, default=0.0) - (HEIGHT - 10)
    return [height - over for height in made] if over > 0 else made
