"""`sd-ext compare`: settings side by side, as one picture and one page.

asked    the options                             draw       draws what is missing
axes     from options to a grid of recipes       told       what is said of a comparison in words
cells    the pictures, each in a file            sheet      the picture
reference  pictures of many calls                page, plot the page; levels, where steps fall
strips   how a picture came about                placed   what it says of its steps
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import whole
from ...errors import InputError
from ..checks import check_prompts
from ..pictures import Destination, encode, name_stem
from ..request import Recipe, Resources, Run, given, with_options
from ..voice import Voice
from .asked import REFERENCE, Asked, Page
from .axes import Grid, axes_of, grid_of

if TYPE_CHECKING:
    from .told import Comparison, Place

EXAMPLE = 'sd-ext compare --prompt "red apple" --samplers euler,auto --steps 4,8,20'
VARIED = ("sampler", "grid", "seed", "model", "batch")  # options of `generate` that others stand for here
SAME_LIMIT = {"samplers", "grids", "steps", "unet"}


@with_options(Asked, Page, Recipe, Resources, without=VARIED)
def compare(**options: Any) -> None:
    """Draw a grid of pictures whose settings differ, as one picture and one page with times and distances."""
    asked, shown = Asked(**given(Asked, options)), Page(**given(Page, options))
    shown.check()
    base = {name: value for name, value in given(Recipe, options).items() if name not in vars(asked)}
    if not asked.prompt:
        raise InputError(f"no prompt given; try: {EXAMPLE}")
    check_prompts(asked.prompt)
    places = {"columns": shown.columns, "rows": shown.rows, "pages": shown.pages}
    axes = axes_of(asked)
    grid = grid_of(axes, base, places)
    recipes = [grid.recipe(*place) for place in grid.places()]
    for recipe in recipes:
        recipe.check()
    run = Run(**given(Resources, {**options, "batch": None}), trust_remote_code=shown.trust_remote_code)
    run.check_resources(recipes[0].device)
    folder = Destination.check(shown.out, 2, overwrite=False).folder
    if shown.out.suffix.lower() in (".html", ".htm"):
        raise InputError(f"--out {shown.out}: name a folder; picture and page get names of their own in it")
    from ..plan import find_for

    by_model = {name: [r for r in recipes if r.model == name] for name in dict.fromkeys(r.model for r in recipes)}
    models = {name: find_for(its) for name, its in by_model.items()}
    calls = _calls(shown.reference, {axis.name for axis in axes if axis.varies} | {a.kind for a in axes if a.varies})
    voice = Voice(shown.quiet, shown.json)
    with voice.busy("Looking at what is there"):
        from ..silence import silence_torch

        silence_torch()
        from .cells import Store
        from .draw import Drawing
        from .told import Comparison

        for recipe in {replace(recipe, prompt="", seed=0): recipe for recipe in recipes}.values():
            _check_names(recipe)
    drawing = Drawing(Store(folder, place_in(run)), models, run, voice, calls, shown.yes, shown.strips)
    cells = drawing.cells(recipes)
    comparison = Comparison(grid, dict(zip(grid.places(), cells, strict=True)), calls)
    _write(comparison, folder, voice)
    old = f", {drawing.found} were there already" if drawing.found else ""
    voice.hint(f"{len(set(recipes))} pictures{old}; the page opens in any browser.")


def _calls(given: int | None, varying: set[str]) -> int:
    """How many calls a reference has."""
    return given if given is not None else REFERENCE if SAME_LIMIT & varying else 0


def _check_names(recipe: Recipe) -> None:
    from ..prepare import check_names

    check_names(recipe)


def place_in(run: Run) -> Any:
    """A function that tells device and dtype of a recipe, for `Store`."""
    from ..machine import resolve_device

    def place(recipe: Recipe) -> tuple[str, str]:
        device, dtype = resolve_device(recipe, run.offload)
        return device.type, str(dtype).removeprefix("torch.")

    return place


def stem_of(grid: Grid, keys: Sequence[str]) -> str:
    """How the files of a comparison begin: what varies, and a digest, so that the same command writes the same files.

    Args:
        grid: what is compared.
        keys: of all that is in it.
    """
    names = [axis.name for axis in (grid.rows, grid.columns, grid.pages) if axis.varies]
    return f"{name_stem('-'.join(names))}-{hashlib.sha256(' '.join(keys).encode()).hexdigest()[:6]}"


def _write(comparison: Comparison, folder: Path, voice: Voice) -> None:
    """Write and report the sheets, a picture for each page, and the HTML page."""
    from .cells import open_cell
    from .page import page
    from .sheet import sheet

    cells = comparison.cells
    pictures = {place: open_cell(cell.path) for place, cell in cells.items() if cell.path}
    others = {cell.reference: open_cell(cell.reference) for cell in cells.values() if cell.reference}
    keys = [*map(str, comparison.grid.shape), str(comparison.calls)]
    keys += [cell.path.stem if cell.path else cell.refused for cell in cells.values()]
    stem, pages = stem_of(comparison.grid, keys), comparison.grid.shape[0]
    for number in range(pages):
        path = folder / f"{stem}{f'-{number + 1}' if pages > 1 else ''}.png"
        whole.write_bytes(path, encode(sheet(comparison, number, pictures)))
        voice.picture(path, None)
    whole.write_text(folder / f"{stem}.html", page(comparison, pictures, others, folder))
    voice.picture(folder / f"{stem}.html", None)
    if voice.as_json:
        for place, cell in cells.items():
            print(json.dumps(_told(comparison, place, cell)))


def _told(comparison: Comparison, place: Place, cell: Any) -> dict[str, Any]:
    grid = comparison.grid
    axes = zip((grid.pages, grid.rows, grid.columns), place, strict=True)
    told: dict[str, Any] = {axis.name: axis.values[number].label for axis, number in axes if axis.varies}
    made = {
        "path": str(cell.path) if cell.path else None, "seconds": cell.seconds, "distance": cell.distance,
        "refused": cell.refused or None, "no distance": cell.why or None,
    }  # fmt: skip
    return told | {name: value for name, value in made.items() if value is not None}
