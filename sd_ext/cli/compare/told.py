"""What a comparison says in words: its title, what all its pictures share, and what stands under each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ... import __version__
from ...errors import printable
from .axes import Axis, Grid
from .draw import Cell

Place = tuple[int, int, int]
HIDDEN = (
    "clip_skip",
    "prompt",
    "sampler",
    "grid",
    "steps",
    "guidance",
    "seed",
    "unet",
    "unet_option",
    "lora",
    "model",
    "digests",
)
"""Settings of a recipe that are told as axes, or not at all."""


@dataclass(frozen=True)
class Comparison:
    """A comparison with its pictures.

    Args:
        grid: what was compared.
        cells: (page, row, column) -> the picture there.
        calls: of the reference; 0 if there is none.
    """

    grid: Grid
    cells: Mapping[Place, Cell]
    calls: int

    @property
    def axes(self) -> list[Axis]:
        """The settings that vary."""
        return [axis for axis in (self.grid.columns, self.grid.rows, self.grid.pages) if axis.varies]

    @property
    def title(self) -> str:
        """The prompt, or which settings are compared if it varies."""
        prompts = [axis for axis in self.grid.fixed if axis.name == "prompt"]
        names = " and ".join(axis.name for axis in self.axes)
        return printable(prompts[0].values[0].label) if prompts else f"Comparison of {names}"

    def shared(self, page: int | None = None) -> list[tuple[str, str]]:
        """(name, value) of what all pictures have in common, and of what a page of several has."""
        first = next((cell.record for cell in self.cells.values() if cell.record), None)
        axes = [(axis, 0) for axis in self.grid.fixed if axis.name != "prompt"]
        axes += [(self.grid.pages, page)] if page is not None and self.grid.pages.varies else []
        told = {axis.name: axis.values[number].label for axis, number in axes}
        if first:
            varying = {"steps", "guidance", "seeds", "models", "samplers"} & {axis.kind for axis in self.axes}
            made = first.recipe
            known = {"models": Path(made.model).name or made.model, "steps": f"{made.steps}", "seeds": f"{made.seed}"}
            known |= {"guidance": f"{made.guidance:g}" if made.guidance is not None else ""}
            known |= {"samplers": str(first.made.get("sampler") or first.made.get("scheduler") or "")}
            told |= {name: value for name, value in known.items() if name not in {*told, *varying} and value}
            rest = {name.replace("_", " "): value for name, value in made.as_json().items() if name not in HIDDEN}
            rest |= {"clip skip": made.clip_skip} if made.clip_skip != 1 else {}
            told |= {name: value if isinstance(value, str) else str(value) for name, value in rest.items()}
        singular = {"models": "model", "seeds": "seed", "samplers": "sampler", "grids": "grid"}
        return [(singular.get(name, name), printable(value)) for name, value in told.items()]

    def best(self, page: int, column: int) -> int | None:
        """The row whose picture is nearest, of a column whose pictures are all measured to one; else None."""
        cells = {row: self.cells[page, row, column] for row in range(len(self.grid.rows.values))}
        known = {row: cell.distance for row, cell in cells.items() if cell.distance is not None}
        alike = len({cells[row].reference for row in known}) == 1
        return min(known, key=lambda row: known[row]) if len(known) > 1 and alike else None

    @property
    def farthest(self) -> float:
        """The largest distance; 0 if there is none."""
        return max((cell.distance for cell in self.cells.values() if cell.distance is not None), default=0.0)

    @property
    def explained(self) -> str:
        """What distances are, in a sentence; "" if there are none."""
        if not any(cell.distance is not None for cell in self.cells.values()):
            return ""
        return (
            f"Percentages: how far a picture is from the one that {self.calls} calls draw with the same settings (root "
            "mean square of the pixels' difference, of the full range). The smaller the better."
        )


MADE_BY = f"sd_ext {__version__} compare"


def time_of(cell: Cell) -> str:
    """How long a picture took: "0.82 s"."""
    if cell.seconds is None:
        return ""
    return f"{cell.seconds:.2f} s" if cell.seconds < 10 else f"{cell.seconds:.0f} s"


def distance_of(cell: Cell) -> str:
    """How far a picture is from its reference: "3.1 %"; else why there is no distance."""
    if cell.distance is None:
        return cell.why
    share = 100 * cell.distance
    return f"{share:.1f} %" if share >= 1 else f"{share:.2f} %"


def headed(axis: Axis, number: int) -> str:
    """The heading of a row, column or page: "8 steps", "guidance 4", "euler"."""
    label, name = printable(axis.values[number].label), printable(axis.name)
    if axis.kind == "steps":
        return f"{label} step{'' if label == '1' else 's'}"
    if axis.kind == "seeds":
        return f"seed {label}"
    return f"{name} {label}" if axis.kind in ("guidance", "lora", "unet_option") and name else label


def lines_of(settings: Sequence[tuple[str, str]]) -> str:
    """Settings in a line."""
    return "   ·   ".join(f"{name} {value}" for name, value in settings)
