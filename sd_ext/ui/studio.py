"""The model that is kept loaded, and what is drawn with it: one drawing at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli.additions import loras_of
from ..cli.pictures import Record
from ..cli.request import Recipe, Run
from ..errors import InputError
from ..models import Model
from .stream import Report, Stopped

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..cli.prepare import Prepared

Tell = Callable[[str], object]
WAIT = 0.1  # seconds between looks at whether who waits for a turn has left
ENLARGED = 256  # pixels of a preview's longer side, at least


class Studio:
    """Draws recipes with a pipeline that stays loaded until another model is asked for, or its files change.

    Args:
        run: how memory and time are spent.
        device, dtype: as `--device` and `--dtype` name them.
    """

    def __init__(self, run: Run | None = None, device: str = "auto", dtype: str = "auto"):
        self.run, self.machine = run or Run(), {"device": device, "dtype": dtype}
        self._turn = threading.Lock()
        self._kept: tuple[Any, Prepared, Any] | None = None
        self._told: Tell = _nobody

    @contextmanager
    def turn(self, report: Report, tell: Tell) -> Iterator[None]:
        """Within the block, nobody else draws.

        Args:
            report: of who waits; `Stopped` is raised if that one leaves before it is their turn.
            tell: gets what there is to say while the turn lasts.
        """
        while not self._turn.acquire(timeout=WAIT):
            report.go_on()
        try:
            self._told = tell
            yield
        except (InputError, Stopped):
            raise
        except BaseException:  # who knows what state the pipeline is in
            self._kept = None
            raise
        finally:
            self._told = _nobody
            self._turn.release()

    def here(self, recipe: Recipe) -> Recipe:
        """The recipe, on this server's device and in its dtype."""
        return replace(recipe, **self.machine)

    def prepare(self, recipes: Sequence[Recipe], model: Model, run: Run, tell: Tell) -> Prepared:
        """`sd_ext.cli.prepare.prepare`, with the pipeline that is loaded if it is of this model. Within a turn only."""
        from ..cli.prepare import prepare, prepare_again

        key = self._key(recipes)
        if self._kept is not None and self._kept[0] == key:
            return prepare_again(self._kept[1], recipes, model, run, tell)
        self._kept = None  # before the next is loaded: there may not be room for two
        prepared = prepare(recipes, model, run, lambda text: self._told(text))
        prepared.pipe.set_progress_bar_config(disable=True)
        self._kept = key, prepared, _colours(prepared.pipe)
        return prepared

    def draw(self, recipe: Recipe, report: Report, on_step: Callable[[float, Image | None], object]) -> Drawing:
        """Draw one picture. Within a turn only.

        Args:
            recipe: what to draw.
            report: stops it.
            on_step: gets, after each call of the network, the share that is done and a small picture of it.

        Raises:
            InputError: it cannot be drawn.
            Stopped: it is not wanted any more.
        """
        from ..cli.advice import doubts
        from ..cli.drawing import draw_batch
        from ..cli.made import Circumstances, of_one
        from ..cli.plan import find_for
        from ..cli.preview import as_picture
        from ..cli.prompting import look_at_prompt
        from ..models.words import words_of

        recipe = self.here(recipe)
        model = find_for([recipe])
        pipe, recipes, _ = self.prepare([recipe], model, self.run, self._told)
        look_at_prompt(pipe, recipes[0], self._told)
        words, colours = words_of(model), self._kept[2] if self._kept else None
        for doubt in doubts(words, pipe, recipes) if words else ():
            self._told(doubt)
        done = 0.0

        def after(pictures: float, latents: Any) -> None:
            nonlocal done
            report.go_on()
            done += pictures
            shown = None
            if colours is not None and getattr(latents, "ndim", 0) == 4:
                shown = _enlarged(as_picture(latents, colours))
            on_step(min(done, 1.0), shown)

        report.go_on()
        started = time.perf_counter()
        (drawn,) = draw_batch(pipe, recipes, after)
        seconds = round(time.perf_counter() - started, 4)
        made = Circumstances(pipe, model).of(drawn.recipe) | of_one(drawn) | {"seconds": seconds}
        return Drawing(drawn.picture, Record(drawn.recipe, made), seconds)

    def load(self, recipe: Recipe) -> None:
        """Load the model of a recipe, so that the first who draws need not wait for it."""
        from ..cli.plan import find_for

        with self.turn(Report(threading.Event()), _nobody):
            recipe = self.here(recipe)
            self.prepare([recipe], find_for([recipe]), self.run, _nobody)

    def _key(self, recipes: Sequence[Recipe]) -> Any:
        """What a loaded pipeline is good for: the model, where it runs, and the state of the files it came from."""
        first = recipes[0]
        names = first.model, first.variant, first.revision, first.prediction_type, first.vae, first.embedding
        loras = dict.fromkeys(named.source for recipe in recipes for named in loras_of(recipe))
        known = self._kept[0][-1] if self._kept else {}
        stamps = {**known, **{source: _stamp(source) for source in (first.model, *loras)}}
        return (*names, first.device, first.dtype, stamps)


class Drawing:
    """A picture, how it was made, and how many seconds that took."""

    def __init__(self, picture: Image, record: Record, seconds: float):
        self.picture, self.record, self.seconds = picture, record, seconds


def _nobody(text: str) -> None:
    """Tell nobody."""


def _stamp(source: str) -> tuple[Any, ...]:
    """Size and time of change of a file, or of all files in a folder; empty for what is no path."""
    path = Path(source).expanduser()
    if not path.exists():
        return ()
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def _colours(pipe: Any) -> Any:
    """What makes a picture of latents; None for a pipeline without an autoencoder that decodes."""
    from ..cli.preview import colour_map

    return colour_map(pipe) if hasattr(getattr(pipe, "vae", None), "decode") else None


def _enlarged(picture: Image) -> Image:
    """A picture of latents, at a size that can be seen."""
    from PIL import Image

    scale = max(1, round(ENLARGED / max(picture.size)))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.BICUBIC)
