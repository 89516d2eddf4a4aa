"""Errors and spreads against calls, as SVG: a column of two panels for each strength of guidance."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..calibrated import Calibrated

WIDTH, HEIGHT, LEFT, TOP, GAP = 250, 170, 60, 28, 44  # of a panel, and around it
NAMED = 130  # pixels of a name in the legend
LINES = {
    "known": ("best known", "#8a8f98"),
    "one_field": ("fitted, one field", "#d98324"),
    "fitted": ("fitted", "#1f6fb2"),
}
"""What is drawn: key of `Fit.errors` -> its name and colour."""

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """A scale from numbers to pixels.

    Args:
        low, high: the numbers at its ends.
        log: whether it is logarithmic.
    """

    low: float
    high: float
    log: bool = False

    def part(self, value: float) -> float:
        """Where a number is, 0 to 1."""
        change: Callable[[float], float] = math.log if self.log else float
        return (change(value) - change(self.low)) / ((change(self.high) - change(self.low)) or 1.0)

    def marks(self) -> list[float]:
        """Round numbers on it."""
        if self.log:
            tens = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = [m * 10.0**e for e in tens for m in (1, 2, 5) if self.low <= m * 10.0**e <= self.high]
            return found if len(found) < 7 else found[:: math.ceil(len(found) / 6)]
        step = 10 ** math.floor(math.log10(self.high - self.low))
        step = next((step / d for d in (5, 2, 1) if (self.high - self.low) / (step / d) <= 6), step)
        first = math.ceil(self.low / step)
        return [round(i * step, 9) for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def plot(calibrated: Calibrated) -> str:
    """The plot as an SVG document."""
    settings = calibrated.settings
    fits = {(f.fit.calls, f.fit.guidance): f.fit for f in calibrated.finished}
    errors = [fit.errors[key] for fit in fits.values() for key in LINES if fit.errors.get(key, 0) > 0]
    spreads = [fit.errors[f"{key}_spread"] for fit in fits.values() for key in LINES if f"{key}_spread" in fit.errors]
    error = Axis(min(errors, default=0.1) / 1.3, max(errors, default=1.0) * 1.3, log=True)
    spread = Axis(min([0.9, *spreads]) - 0.03, min(max([1.1, *spreads]), 3.0) + 0.03)
    calls = Axis(settings.calls[0] - 0.5, settings.calls[-1] + 0.5)
    parts = []
    for column, guidance in enumerate(settings.guidance):
        x = LEFT + column * (WIDTH + GAP)
        title = f"guidance {guidance:g}" if guidance > 1 else "without guidance"
        for row, (ending, axis, name) in enumerate((("", error, "error (RMSE)"), ("_spread", spread, "spread"))):
            lines: dict[str, Points] = {
                key: [(n, fits[n, guidance].errors[key + ending]) for n in settings.calls
                      if key + ending in fits[n, guidance].errors]
                for key in LINES
            }  # fmt: skip
            y = TOP + row * (HEIGHT + GAP)
            parts.append(
                _panel(x, y, calls, axis, lines, title if not row else "", "" if column else name, settings.calls)
            )
    width = max(LEFT + len(settings.guidance) * (WIDTH + GAP), LEFT + len(LINES) * NAMED)
    height = TOP + 2 * (HEIGHT + GAP) + 14
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>', *parts, _legend(height - 12), "</svg>\n",
    ])  # fmt: skip


def _panel(
    x: float, y: float, across: Axis, up: Axis, lines: dict[str, Points], title: str, name: str, calls: Sequence[int]
) -> str:
    """One panel with its left upper corner at (x, y)."""

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return x + WIDTH * across.part(point[0]), y + HEIGHT * (1 - min(max(up.part(point[1]), 0.0), 1.0))

    parts = [f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#c6cad0"/>']
    parts += (
        [f'<text x="{x + WIDTH / 2}" y="{y - 9}" text-anchor="middle" font-size="12">{title}</text>'] if title else []
    )
    if name:
        at = f"{x - 46},{y + HEIGHT / 2}"
        parts.append(f'<text transform="translate({at}) rotate(-90)" text-anchor="middle">{name}</text>')
    for mark in up.marks():
        height = place((across.low, mark))[1]
        colour = "#9aa0a8" if mark == 1 and not up.log else "#eceef1"
        parts.append(f'<line x1="{x}" x2="{x + WIDTH}" y1="{height:.1f}" y2="{height:.1f}" stroke="{colour}"/>')
        parts.append(f'<text x="{x - 5}" y="{height + 4:.1f}" text-anchor="end" fill="#555">{mark:g}</text>')
    for number in calls:
        left = place((number, up.low))[0]
        parts.append(f'<text x="{left:.1f}" y="{y + HEIGHT + 14}" text-anchor="middle" fill="#555">{number}</text>')
    parts.append(f'<text x="{x + WIDTH / 2}" y="{y + HEIGHT + 28}" text-anchor="middle" fill="#555">calls</text>')
    for key, points in lines.items():
        colour, placed = LINES[key][1], [place(point) for point in points]
        way = " ".join(f"{a:.1f},{b:.1f}" for a, b in placed)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in placed]
    return "\n".join(parts)


def _legend(y: float) -> str:
    parts = []
    for number, (name, colour) in enumerate(LINES.values()):
        x = LEFT + number * NAMED
        parts.append(f'<line x1="{x}" x2="{x + 18}" y1="{y - 4}" y2="{y - 4}" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{x + 24}" y="{y}">{name}</text>')
    return "\n".join(parts)
