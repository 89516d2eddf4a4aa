"""How much a visitor of the page may ask for."""

from __future__ import annotations

from dataclasses import dataclass

from ..cli.checks import MAX_SIDE, MAX_STEPS, parse_size
from ..cli.request import Recipe
from ..errors import InputError


@dataclass(frozen=True)
class Limits:
    """The most that one press of a button does.

    Args:
        steps: network evaluations of a picture.
        side: pixels of a picture's longer side.
        cells: pictures of a plot.
        calls: network evaluations of a plot, references included.
    """

    steps: int = MAX_STEPS
    side: int = MAX_SIDE
    cells: int = 400
    calls: int = 100_000

    def check(self, recipe: Recipe) -> None:
        """Raise `InputError` for a recipe that is too much."""
        if recipe.steps > self.steps:
            raise InputError(f"--steps {recipe.steps} is too many here; choose at most {self.steps}")
        size = parse_size(recipe.size)
        if size is not None and max(size) > self.side:
            raise InputError(f"--size {recipe.size} is too large here; choose at most {self.side} pixels to a side")

    def check_plot(self, cells: int, calls: int) -> None:
        """Raise `InputError` for a plot that is too much.

        Args:
            cells: its pictures.
            calls: the network evaluations of all of them.
        """
        if cells > self.cells:
            raise InputError(f"a plot of {cells:,} pictures is too large here; choose at most {self.cells:,}")
        if calls > self.calls:
            raise InputError(
                f"{cells:,} pictures of {calls:,} network calls are too many here; choose at most {self.calls:,} calls"
            )


OWN = Limits()
"""On one's own machine."""

SHARED = Limits(steps=100, side=1024, cells=36, calls=1_500)
"""Where strangers draw."""
