"""What the page draws: from settings to files and words. Nothing here knows of Gradio.

Each function is an iterator of `Progress` and of what has been made; it draws in a thread, and ends with `Stopped` soon
after its event is set.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .. import whole
from ..cli.pictures import Destination, Record, encode, name_stem
from ..cli.request import Recipe
from ..errors import printable
from ..models import EMBEDDED
from .code import as_command, as_python, told
from .limits import OWN, Limits
from .offer import Offer
from .settings import Settings, plain, recipe_of
from .stream import Progress, Report, streamed
from .studio import Drawing, Studio

BETWEEN = 0.2  # seconds between two previews, at least
KEPT = 2000  # files that are shown; the oldest go first


@dataclass
class Desk:
    """What the page works with.

    Args:
        studio: draws.
        shown: a folder for files while the page runs.
        models, loras: what is offered.
        limits: how much a visitor may ask for.
        out: where every picture is kept too; None for nowhere.
        local: whether visitors sit at this machine, so that paths mean something to them.
    """

    studio: Studio
    shown: Path
    models: Offer = field(default_factory=lambda: Offer("model", {EMBEDDED: EMBEDDED}))
    loras: Offer = field(default_factory=lambda: Offer("LoRA", {}))
    limits: Limits = OWN
    out: Path | None = None
    local: bool = True
    _files: deque[Path] = field(default_factory=deque)

    def recipe(self, settings: Settings) -> Recipe:
        """The recipe of the fields, within the limits. Raises `InputError`."""
        recipe = recipe_of(settings, self.models, self.loras)
        self.limits.check(recipe)
        return recipe

    def keep(self, drawing: Drawing) -> Path:
        """Write a picture. Returns the file that is shown.

        Raises:
            WriteError: it cannot be written.
        """
        data, stem = encode(drawing.picture, drawing.record), name_stem(drawing.record.recipe.prompt)
        if self.out is not None:
            Destination(self.out).write(data, stem)
        return self.show(data, stem)

    def show(self, data: bytes, stem: str, ending: str = ".png") -> Path:
        """Write a file that is shown while the page runs. Of very many, the oldest are removed."""
        number = int(self._files[-1].parent.name) + 1 if self._files else 1
        path = self.shown / f"{number:06d}" / f"{stem}{ending}"
        whole.write_bytes(path, data)
        self._files.append(path)
        while len(self._files) > KEPT:
            whole.remove(self._files.popleft().parent)
        return path


@dataclass(frozen=True)
class Made:
    """A picture that has been drawn.

    Args:
        path: its file.
        record: how it was made.
        under: what stands under it.
        notes: what was said while it was drawn.
        place: which of two.
        command, python: what draws it again.
    """

    path: Path
    record: Record
    under: str
    notes: tuple[str, ...]
    command: str
    python: str
    place: int = 0


def one(desk: Desk, settings: Settings, stop: threading.Event) -> Iterator[Progress | Made]:
    """Draw a picture.

    Raises:
        InputError: it cannot be drawn; raised before anything is, where that can be known.
        Stopped: it is not wanted any more.
    """
    return _pictures(desk, [desk.recipe(settings)], stop)


def two(desk: Desk, settings: Settings, other: Settings, stop: threading.Event) -> Iterator[Progress | Made]:
    """Draw the same with two settings, from one seed. Errors as in `one`.

    Args:
        settings: of the left one; its seed is that of both.
        other: of the right one.
    """
    left = desk.recipe(settings)
    return _pictures(desk, [left, desk.recipe(replace(other, seed=str(left.seed)))], stop)


def _pictures(desk: Desk, recipes: list[Recipe], stop: threading.Event) -> Iterator[Progress | Made]:
    def work(report: Report) -> None:
        notes: dict[str, None] = {}
        report.show(Progress("Waiting for the drawing before this one"))
        with desk.studio.turn(report, lambda text: notes.setdefault(printable(text))):
            report.show(Progress("Looking at the model"))
            for place, recipe in enumerate(recipes):
                shows = _showing(report, recipe.steps, place, len(recipes))
                drawing = desk.studio.draw(recipe, report, shows)
                report.show(made(desk, recipe, drawing, tuple(notes), place))

    return streamed(work, stop)


def _showing(report: Report, steps: int, place: int, pictures: int) -> Callable[[float, Any], None]:
    """What is called after each call of the network, and shows it, but not more often than one can see."""
    last = 0.0

    def on_step(share: float, shown: Any) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= BETWEEN:
            last = now
            text = f"Call {round(share * steps)} of {steps}"
            report.show(Progress(text, (place + share) / pictures, shown, place))

    return on_step


def made(desk: Desk, asked: Recipe, drawing: Drawing, notes: tuple[str, ...], place: int) -> Made:
    """Write a picture, and say what there is to say of it.

    Args:
        desk: where.
        asked: its recipe before what was left open was filled in.
        drawing: the picture.
        notes: what was said meanwhile.
        place: which of two it is.
    """
    recipe = drawing.record.recipe
    path = desk.keep(drawing)
    more = told(recipe, "here" if desk.local else "elsewhere")
    sampler = drawing.record.made.get("sampler") or recipe.sampler
    known = {**recipe.as_json(), "seed": recipe.seed, "steps": recipe.steps, "sampler": asked.sampler or sampler}
    under = f"{plain(known)} · {recipe.size} · {_seconds(drawing.seconds)}"
    notes = (*notes, *([more] if more else []))
    return Made(path, drawing.record, under, notes, as_command(recipe), as_python(recipe), place)


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"


def apart(one: Path, other: Path) -> str:
    """How far two pictures are from each other, in words."""
    from ..cli.compare.cells import distance, open_cell

    left, right = open_cell(one), open_cell(other)
    if left.size != right.size:
        return "The two have different sizes."
    share = 100 * distance(left, right)
    return "The two are the same to the bit." if not share else f"The two differ by {share:.1f} % (RMS of all pixels)."
