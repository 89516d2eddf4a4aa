"""What the page's buttons do: from what a browser sent to what it is shown.

Each function gets the visitor's session first. What cannot be done becomes a sentence on the page, never an exception.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from ..cli.pictures import read_told
from ..errors import InputError, SdExtError, one_line
from .form import AS_LEFT, MOST_STEPS
from .plot import EXAMPLES, Axis, Plot, plot
from .settings import LORAS, Settings, on_page, restored
from .stream import Progress, Stopped, Stops
from .words import as_buttons, words_for
from .work import Desk, Made, apart, one, two

MOST_HISTORY = 60  # pictures of a visitor

log = logging.getLogger(__name__)


def bar(progress: Progress) -> str:
    """How far a drawing is, as HTML."""
    width = f"{100 * progress.share:.0f}%"
    return f'<div class="bar"><i style="width:{width}"></i></div><div class="under">{escape(progress.text)}</div>'


def said(under: str, notes: Sequence[str] = ()) -> str:
    """What stands under a picture, as HTML."""
    listed = "".join(f'<div class="note">{escape(on_page(note))}</div>' for note in notes)
    return f'<div class="under">{escape(under)}</div>{listed}'


def wrong(error: BaseException) -> str:
    """What went wrong, as HTML: a sentence. A fault of ours is written to the terminal in full."""
    if isinstance(error, Stopped):
        return '<div class="under">Stopped.</div>'
    if isinstance(error, SdExtError):
        return f'<div class="wrong">{escape(on_page(str(error)))}</div>'
    log.error("a fault of the page", exc_info=error)
    text = one_line(f"{type(error).__name__}: {error}")[:300]
    return f'<div class="wrong">A fault of the program, told in full where it runs: {escape(text)}</div>'


def _skip() -> Any:
    import gradio as gr

    return gr.skip()


class Handlers:
    """What the page's buttons do.

    Args:
        desk: what they work with.
        look_again: looks through the places of models and LoRAs, for files that are new; returns the desk's offers.
    """

    def __init__(self, desk: Desk, look_again: Callable[[], object] = lambda: None):
        self.desk, self.look_again, self.stops = desk, look_again, Stops()

    def draw(self, session: str, history: list[str], *values: Any) -> Iterator[list[Any]]:
        """Outputs: picture, status, command, Python, history, gallery."""
        skip = _skip()
        try:
            for item in one(self.desk, Settings.of(values), self.stops.begin(session)):
                if isinstance(item, Progress):
                    yield [item.preview if item.preview is not None else skip, bar(item), *[skip] * 4]
                else:
                    history = remembered(history, item)
                    shown = [str(item.path), said(item.under, item.notes), item.command, item.python]
                    yield [*shown, history, gallery(history)]
        except Exception as error:
            yield [skip, wrong(error), *[skip] * 4]

    def draw_two(self, session: str, history: list[str], *values: Any) -> Iterator[list[Any]]:
        """Outputs: left and right picture, what stands under each, the slider, status, history, gallery."""
        skip, made = _skip(), list[Made]()
        try:
            left = Settings.of(values[:-8])
            for item in two(self.desk, left, other(left, *values[-8:]), self.stops.begin(session)):
                if isinstance(item, Progress):
                    shown = [skip, skip]
                    shown[item.place] = item.preview if item.preview is not None else skip
                    yield [*shown, skip, skip, skip, bar(item), skip, skip]
                    continue
                made.append(item)
                history = remembered(history, item)
                shown, under = [skip, skip], [skip, skip]
                shown[item.place], under[item.place] = str(item.path), said(item.under, item.notes)
                both = len(made) == 2
                slider = tuple(str(each.path) for each in made) if both else skip
                words = said(apart(made[0].path, made[1].path)) if both else skip
                yield [*shown, *under, slider, words, history, gallery(history)]
        except Exception as error:
            yield [*[skip] * 5, wrong(error), skip, skip]

    def draw_plot(
        self, session: str, across: str, values: str, down: str, more: str, reference: bool, *fields: Any
    ) -> Iterator[list[Any]]:
        """Outputs: the sheet, the HTML page, status."""
        skip = _skip()
        try:
            axes = Axis(across or "", values or ""), Axis(down or "", more or "")
            for item in plot(self.desk, Settings.of(fields), *axes, bool(reference), self.stops.begin(session)):
                if isinstance(item, Plot):
                    yield [str(item.picture), str(item.page), said(item.under, item.notes)]
                else:
                    yield [skip, skip, bar(item)]
        except Exception as error:
            yield [skip, skip, wrong(error)]

    def stop(self, session: str) -> str:
        """Stop what a visitor has under way; the page takes out what waits in the queue. Output: status."""
        self.stops.stop(session)
        return wrong(Stopped())

    def left(self, session: str) -> None:
        """A visitor has closed the page."""
        self.stops.stop(session)

    def restore(self, session: str, file: str | None, *values: Any) -> list[Any]:
        """Take a picture's settings. Outputs: the fields, status."""
        skip = _skip()
        try:
            now = Settings.of(values)
            if file is None:
                return [*[skip] * len(now.values), skip]
            found, lost = restored(read_told(Path(file)), now, self.desk.models, self.desk.loras)
            self.desk.recipe(found)
        except Exception as error:
            return [*[skip] * len(values), wrong(_without(error, file))]
        notes = [f"Not taken from the picture: {'; '.join(lost)}."] if lost else []
        return [*_as_updates(found), said("The settings are those of the picture.", notes)]

    def restore_from_history(self, session: str, history: list[str], number: int, *values: Any) -> list[Any]:
        """Take the settings of a picture of the visitor's own. Outputs as of `restore`."""
        if not 0 <= number < len(history):
            return [*[_skip()] * len(values), wrong(InputError("choose a picture first"))]
        return self.restore(session, history[number], *values)

    def opened(self, session: str, model: str) -> list[Any]:
        """The page was opened. Outputs: the fields of model and LoRAs, and the words."""
        import gradio as gr

        try:
            self.look_again()
        except InputError as error:
            log.warning("%s", error)
        models, loras = self.desk.models.names, self.desk.loras.names
        model = model if model in models else models[0]
        choices = [("none", ""), *((name, name) for name in loras)]
        updates = [gr.update(choices=models, value=model), *[gr.update(choices=choices)] * LORAS]
        return [*updates, self.words(session, model)]

    def words(self, session: str, model: str) -> str:
        """Another model was chosen. Output: its words."""
        try:
            return as_buttons(words_for(self.desk.models.source(model)))
        except InputError as error:
            return wrong(error)

    def example(self, session: str, name: str) -> Any:
        """Another setting was chosen for an axis. Output: the field of its values."""
        import gradio as gr

        value = "" if name == "Prompt" else EXAMPLES.get(name, "")
        return gr.update(value=value, placeholder=EXAMPLES.get(name, ""), interactive=bool(name))


def other(
    left: Settings, prompt: str, model: str, sampler: str, grid: str, steps: str, guidance: str, unet: str, loras: str
) -> Settings:
    """The settings of the right picture: those of the left one, but for what is told."""
    texts = {"model": model, "sampler": sampler, "grid": grid, "unet": unet}
    changes: dict[str, Any] = {name: text or "" for name, text in texts.items() if text != AS_LEFT}
    changes |= {"prompt": prompt} if prompt and prompt.strip() else {}
    changes |= {"guidance": guidance} if guidance and guidance.strip() else {}
    if steps and steps.strip():
        try:
            changes["steps"] = int(steps)
        except ValueError:
            raise InputError(f"--steps {steps!r} cannot be read; write a whole number") from None
    if loras != AS_LEFT:
        changes |= {f"lora_{n}": "" for n in range(1, LORAS + 1)}
    return Settings.of(replace(left, **changes).values)


def remembered(history: Sequence[str], made: Made) -> list[str]:
    """A visitor's pictures that are still there, with one more, the newest first."""
    return [str(made.path), *(path for path in history if Path(path).exists())][:MOST_HISTORY]


def gallery(history: Sequence[str]) -> list[tuple[str, str]]:
    """(file, caption) of a visitor's pictures."""
    return [(path, Path(path).stem.replace("-", " ")) for path in history]


def _as_updates(settings: Settings) -> list[Any]:
    import gradio as gr

    steps = gr.update(value=settings.steps, maximum=max(MOST_STEPS, int(settings.steps)))
    return [steps if name == "steps" else value for name, value in vars(settings).items()]


def _without(error: BaseException, file: str | None) -> BaseException:
    """An error whose sentence names the picture as the visitor does, and not where the server keeps it."""
    if not isinstance(error, InputError) or not file:
        return error
    return InputError(str(error).replace(str(file), Path(file).name))
