"""The X/Y plot: two fields of the page with several values each, on the functions of `sd-ext compare`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import whole
from ..cli.compare import place_in, stem_of
from ..cli.compare.asked import REFERENCE, Asked
from ..cli.compare.axes import Grid, axes_of, grid_of
from ..cli.request import Recipe
from ..errors import InputError, printable
from .settings import Settings
from .stream import Progress, Report, streamed
from .work import KEPT, Desk

AXES = {
    "Sampler": "samplers", "Grid": "grids", "Steps": "steps", "Guidance": "guidance", "Seed": "seeds", "U-Net": "unet",
    "Model": "models", "Strength of the first LoRA": "lora", "Prompt": "prompt",
    "An option of the U-Net": "unet_option",
}  # fmt: skip
"""What an axis may be on the page -> the option of `sd-ext compare`."""

EXAMPLES = {
    "Sampler": "euler, dpm++ 2m, auto", "Grid": "karras, uniform", "Steps": "4, 8, 20", "Guidance": "1, 3, 5, 8",
    "Seed": "0, 1, 2, 3", "U-Net": "exact, balanced, fast", "Strength of the first LoRA": "0, 0.5, 1",
    "Prompt": "one prompt a line", "An option of the U-Net": "pag_scale=0, 1, 3",
}  # fmt: skip

FIELDS = {"samplers": "sampler", "grids": "grid", "seeds": "seed", "models": "model"}
"""Option of `sd-ext compare` -> field of a recipe, where they differ."""


@dataclass(frozen=True)
class Axis:
    """One side of the plot as the page has it: a key of `AXES` and its values as they were entered."""

    name: str
    values: str


@dataclass(frozen=True)
class Plot:
    """A plot that has been drawn.

    Args:
        picture: the file of the sheet.
        page: the file of the HTML page.
        under: what stands under it.
        notes: what was said meanwhile.
        cells: the files of its pictures.
    """

    picture: Path
    page: Path
    under: str
    notes: tuple[str, ...]
    cells: tuple[Path, ...]


def grid_for(desk: Desk, settings: Settings, across: Axis, down: Axis) -> tuple[Grid, list[Recipe]]:
    """The grid, and the recipes of its cells.

    Raises:
        InputError: an axis or a value cannot work, or there are too many cells.
    """
    recipe = desk.studio.here(desk.recipe(settings))
    asked: dict[str, tuple[str, ...]] = {}
    for axis in (across, down):
        if not axis.name:
            continue
        option = AXES.get(axis.name)
        if option is None:
            raise InputError(f"{axis.name!r} is nothing that an axis can be; choose one of {', '.join(AXES)}")
        if option in asked:
            raise InputError(f"both axes are {axis.name}; choose another for one of them")
        if not axis.values.strip():
            example = EXAMPLES.get(axis.name, "the names of two models")
            raise InputError(f"{axis.name}: enter values with commas between, such as {example}")
        asked[option] = _values(desk, settings, option, axis.values.strip())
    base = {name: value for name, value in vars(recipe).items() if name not in _set_by(asked)}
    if "lora" in asked:
        base["lora"] = recipe.lora[1:]
    if "unet_option" in asked:
        name = asked["unet_option"][0].partition("=")[0]
        base["unet_option"] = tuple(each for each in recipe.unet_option if each.partition("=")[0].strip() != name)
    asked.setdefault("prompt", (recipe.prompt,))
    axes = axes_of(Asked(**asked))
    names = {option: next((each.name for each in axes if each.kind == option), None) for option in asked}
    places = {"columns": _place(across, axes, names), "rows": _place(down, axes, names), "pages": None}
    grid = grid_of(axes, base, places)
    recipes = [grid.recipe(*place) for place in grid.places()]
    for each in recipes:
        each.check()
        desk.limits.check(each)
    return grid, recipes


def _set_by(asked: dict[str, Any]) -> set[str]:
    return {"prompt", *(FIELDS.get(option, option) for option in asked if option not in ("lora", "unet_option"))}


def _place(axis: Axis, axes: Any, names: dict[str, str | None]) -> str | None:
    name = names.get(AXES.get(axis.name, ""))
    return name if any(each.name == name and each.varies for each in axes) else None


def _values(desk: Desk, settings: Settings, option: str, text: str) -> tuple[str, ...]:
    """The values of an axis as `Asked` takes them."""
    if option == "prompt":
        return tuple(line.strip() for line in text.splitlines() if line.strip())
    if option == "models":
        return tuple(desk.models.source(name.strip()) for name in text.split(",") if name.strip())
    if option == "lora":
        if not settings.loras:
            raise InputError("no LoRA is chosen whose strength could vary; choose one, or another axis")
        return (f"{desk.loras.source(settings.loras[0][0])}:{text.replace(' ', '')}",)
    if option == "unet_option":
        name, equals, values = text.partition("=")
        if not equals:
            raise InputError(f"{text!r} cannot be read; write a name and values, such as pag_scale=0, 1, 3")
        return (f"{name.strip()}={values.strip()}",)
    return (text,)


def plot(
    desk: Desk, settings: Settings, across: Axis, down: Axis, reference: bool, stop: threading.Event
) -> Iterator[Progress | Plot]:
    """Draw a plot.

    Args:
        desk, settings: what all pictures share.
        across, down: the axes; one may have no name.
        reference: whether to measure how far each picture is from the one of very many calls.
        stop: set to end it.

    Raises:
        InputError: it cannot be drawn.
        Stopped: it is not wanted any more.
    """
    grid, recipes = grid_for(desk, settings, across, down)
    calls = min(REFERENCE, desk.limits.steps) if reference else 0
    others = len({(each.seed, each.guidance, each.prompt, each.model, each.lora) for each in recipes}) if calls else 0
    desk.limits.check_plot(len(recipes), sum(each.steps for each in recipes) + calls * others)

    def work(report: Report) -> None:
        speaks = Speaks(report, sum(each.steps for each in recipes) + calls * others)
        report.show(Progress("Waiting for the drawing before this one"))
        with desk.studio.turn(report, speaks.tell):
            report.show(_drawn(desk, grid, recipes, calls, speaks))

    return streamed(work, stop)


def _drawn(desk: Desk, grid: Grid, recipes: list[Recipe], calls: int, speaks: Speaks) -> Plot:
    from ..cli.compare.cells import Store, open_cell
    from ..cli.compare.draw import Drawing
    from ..cli.compare.page import page
    from ..cli.compare.sheet import sheet
    from ..cli.compare.told import Comparison
    from ..cli.pictures import encode
    from ..cli.plan import find_for
    from ..cli.prepare import check_names

    speaks.report.show(Progress("Looking at what is there"))
    for recipe in dict.fromkeys(recipes):
        check_names(recipe)
    models = {name: find_for([each for each in recipes if each.model == name]) for name in {r.model for r in recipes}}
    folder = (desk.out or desk.shown) / "plots"
    if desk.out is None and folder.exists() and sum(1 for _ in folder.rglob("*.png")) > KEPT:
        whole.remove(folder)
    store = Store(folder, place_in(desk.studio.run))
    drawing = Drawing(store, models, desk.studio.run, speaks, calls, True, prepare=desk.studio.prepare)  # type: ignore[arg-type]
    cells = drawing.cells(recipes)
    comparison = Comparison(grid, dict(zip(grid.places(), cells, strict=True)), calls)
    pictures = {place: open_cell(cell.path) for place, cell in comparison.cells.items() if cell.path}
    references = {cell.reference: open_cell(cell.reference) for cell in cells if cell.reference}
    stem = stem_of(grid, [cell.path.stem if cell.path else cell.refused for cell in cells])
    shown = desk.show(encode(sheet(comparison, 0, pictures)), stem)
    text = page(comparison, pictures, references, folder).encode()
    under = f"{len(set(recipes))} pictures" + (f", {drawing.found} were there already" if drawing.found else "")
    paths = tuple(cell.path for cell in cells if cell.path)
    return Plot(shown, desk.show(text, stem, ".html"), under, tuple(speaks.notes), paths)


class Speaks:
    """What `sd-ext compare` speaks through, here to the page: as `sd_ext.cli.voice.Voice`.

    Args:
        report: gets the progress.
        calls: of all that is drawn.
    """

    def __init__(self, report: Report, calls: int):
        self.report, self.calls, self.done = report, calls, 0.0
        self.notes: dict[str, None] = {}

    def tell(self, text: str) -> None:
        """Note something that has to be said."""
        self.notes.setdefault(printable(text))

    def busy(self, what: str) -> Any:
        """Say what is being done."""
        self.report.show(Progress(what, min(1.0, self.done / max(self.calls, 1))))
        return nullcontext()

    @contextmanager
    def progress(self) -> Iterator[Speaks]:
        """What is advanced by calls of the network."""
        yield self

    def add_task(self, what: str, total: float) -> int:
        """Begin to count. Returns a number that stands for the task."""
        return 0

    def advance(self, task: int, calls: float) -> None:
        """Count. Raises `Stopped` if the plot is not wanted any more."""
        self.done += calls
        share = min(1.0, self.done / max(self.calls, 1))
        self.report.show(Progress(f"Call {round(self.done)} of about {self.calls}", share))
