"""Draw what a comparison lacks: model by model, each picture alone, so that its time is its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ... import whole
from ...errors import InputError
from ...models import Model
from ..pictures import Record, encode
from ..request import Recipe, Run
from ..voice import Voice
from .cells import Store, distance, open_cell, read, write
from .placed import sigmas_of
from .reference import GRID, SAMPLER, reference, why_none
from .strips import strip, strip_path, watched

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..prepare import Prepared

MANY = 200  # pictures; for more, --yes is asked for


@dataclass(frozen=True)
class Cell:
    """A picture of a comparison.

    Args:
        recipe: as it was asked for.
        path: its file; None if it could not be drawn.
        record: how it was made.
        refused: why it could not be drawn.
        reference: the file of the picture with many calls.
        distance: to that one; see `sd_ext.cli.compare.cells.distance`.
        why: why there is none, as words that follow the sampler's name.
        strip: the file of its strip, if it has one.
    """

    recipe: Recipe
    path: Path | None = None
    record: Record | None = None
    refused: str = ""
    reference: Path | None = None
    distance: float | None = None
    why: str = ""
    strip: Path | None = None

    @property
    def seconds(self) -> float | None:
        """How long drawing it took, if that is known."""
        told = self.record.made.get("seconds") if self.record else None
        return float(told) if isinstance(told, int | float) and not isinstance(told, bool) else None


@dataclass
class Drawing:
    """What is drawn, and where to.

    Args:
        store: the pictures.
        models: name -> model.
        run: how memory is spent.
        voice: speaks.
        calls: of references; 0 for none.
        yes: whether even very many are drawn.
        strips: whether each picture gets a strip, see `strips`.
        prepare: gets a pipeline ready, with the arguments of `sd_ext.cli.prepare.prepare`, which it is by default.
    """

    store: Store
    models: Mapping[str, Model]
    run: Run
    voice: Voice
    calls: int
    yes: bool
    strips: bool = False
    prepare: Callable[..., Prepared] | None = None
    drawn: int = 0
    found: int = 0
    _refused: dict[Path, str] = field(default_factory=dict)
    _records: dict[Path, Record] = field(default_factory=dict)
    _said_none: bool = False

    def cells(self, recipes: Sequence[Recipe]) -> list[Cell]:
        """Draw what is missing, and return all in the order of the recipes.

        Raises:
            InputError: nothing can be drawn at all, or there is very much to draw and `yes` was not given.
        """
        paths = {recipe: self.store.path(recipe, self.models[recipe.model]) for recipe in dict.fromkeys(recipes)}
        wanted = [*paths, *({reference(recipe, self.calls) for recipe in paths} if self.calls else ())]
        self._draw_all(paths, wanted)
        self.found = len(paths) - self.drawn - len(self._refused)
        whys = {recipe: why_none(self._records[path]) for recipe, path in paths.items() if path in self._records}
        pairs = {recipe: reference(recipe, self.calls) for recipe, why in whys.items() if not why and self.calls}
        others = {each: self.store.path(each, self.models[each.model]) for each in dict.fromkeys(pairs.values())}
        self._draw_all(others, ())
        drawn = {recipe: others[pair] for recipe, pair in pairs.items()}
        made = {recipe: self._cell(recipe, path, drawn.get(recipe), whys) for recipe, path in paths.items()}
        if self._refused and not any(cell.path for cell in made.values()):
            raise InputError(next(iter(self._refused.values())))
        return [made[recipe] for recipe in recipes]

    def _cell(self, recipe: Recipe, path: Path, other: Path | None, whys: Mapping[Recipe, str]) -> Cell:
        if path not in self._records:
            return Cell(recipe, refused=self._refused.get(path, "it could not be drawn"))
        made = Cell(recipe, path, self._records[path], strip=self._strip(path))
        if other is None or other not in self._records:
            return replace(made, why=whys.get(recipe, "") if self.calls else "")
        return replace(made, reference=other, distance=distance(open_cell(path), open_cell(other)))

    def _strip(self, path: Path) -> Path | None:
        return strip_path(path) if self.strips and strip_path(path).exists() else None

    def _draw_all(self, paths: Mapping[Recipe, Path], wanted: Sequence[Recipe]) -> None:
        """Draw what is not there.

        Args:
            paths: the pictures.
            wanted: all that will be drawn, these and others: if they are very many, --yes is needed.
        """
        missing = []
        for recipe, path in paths.items():
            record = read(path, self.voice.tell)
            lacks = self.strips and wanted and record and record.made.get("strip", True) and not self._strip(path)
            if record is None or lacks:
                missing.append(recipe)
            else:
                self._records[path] = record
        for name in dict.fromkeys(recipe.model for recipe in missing):
            ask = wanted if len(missing) > MANY and not self.yes else ()
            self._draw_model([recipe for recipe in missing if recipe.model == name], paths, ask)

    def _draw_model(self, recipes: Sequence[Recipe], paths: Mapping[Recipe, Path], ask: Sequence[Recipe]) -> None:
        """Load a model, and draw its pictures; where there is something to ask for, only measure how long it takes."""
        from ..prepare import prepare
        from ..prompting import look_at_prompt

        ready, model = self.prepare or prepare, self.models[recipes[0].model]
        with self.voice.busy(f"Loading {model.name}"):
            prepared = ready(recipes[:1] if ask else recipes, model, self.run, self.voice.tell)
            prepared.pipe.set_progress_bar_config(disable=True)
        for recipe in {each.prompt: each for each in prepared.recipes}.values():
            look_at_prompt(prepared.pipe, recipe, self.voice.tell)
        if ask:
            calls = sum(recipe.steps for recipe in ask)
            raise InputError(f"{how_long(prepared, len(ask), calls)}; give --yes to draw them")
        _once(prepared, prepared.recipes[0], 2)  # so that the first picture's time is that of any other
        self._draw(prepared, [paths[recipe] for recipe in recipes], model)

    def _draw(self, prepared: Prepared, paths: Iterable[Path], model: Model) -> None:
        from ..drawing import draw_batch
        from ..made import Circumstances, of_one

        pipe, recipes, equipment = prepared
        circumstances = Circumstances(pipe, model)
        with self.voice.progress() as bar:
            task = bar.add_task("Network calls", total=sum(recipe.steps for recipe in recipes))
            for recipe, path in zip(recipes, paths, strict=True):

                def on_step(pictures: float, latents: object, steps: int = recipe.steps) -> None:
                    bar.advance(task, pictures * steps)

                try:
                    equipment.put_on(recipe)
                    started = time.perf_counter()
                    with watched(pipe.scheduler, self.strips) as seen:
                        (drawn,) = draw_batch(pipe, [recipe], on_step)
                    seconds = time.perf_counter() - started
                except InputError as error:
                    self._refused[path] = str(error)
                    self.voice.tell(f"One picture cannot be drawn: {error}")
                    continue
                made = circumstances.of(recipe) | of_one(drawn) | {"seconds": round(seconds, 4)}
                made |= {"sigmas": sigmas} if (sigmas := sigmas_of(pipe.scheduler)) else {}
                if self.strips:
                    made |= {"strip": self._keep_strip(path, strip(pipe, seen))}
                record = self._records[path] = Record(recipe, made)
                write(path, drawn.picture, record)
                self.drawn += 1

    def _keep_strip(self, path: Path, picture: Image | None) -> bool:
        """Write the strip of a picture, before the picture itself; whether there is one."""
        if picture is None:
            if not self._said_none:
                self.voice.tell("Some pictures have no strip: their sampler or autoencoder shows nothing on the way.")
            self._said_none = True
            return False
        whole.write_bytes(strip_path(path), encode(picture))
        return True


def _once(prepared: Prepared, recipe: Recipe, steps: int) -> float:
    """Draw a picture that is not kept. Returns the seconds."""
    from ..drawing import draw_batch

    short: Any = replace(recipe, sampler=SAMPLER, grid=GRID, like=None, steps=steps, strength=None, upscale=None)
    short = replace(short, upscale_steps=None, denoise=None)
    prepared.equipment.put_on(short)
    started = time.perf_counter()
    draw_batch(prepared.pipe, [short])
    return time.perf_counter() - started


def how_long(prepared: Prepared, pictures: int, calls: int) -> str:
    """What drawing would take, measured on two pictures of few calls, as the beginning of a sentence."""
    from ..calibrate import minutes

    _once(prepared, prepared.recipes[0], 2)
    few, more = _once(prepared, prepared.recipes[0], 2), _once(prepared, prepared.recipes[0], 6)
    call = max(more - few, 0.0) / 4
    return f"{pictures:,} pictures of {calls:,} network calls take about {minutes(calls * call + pictures * few)} here"
