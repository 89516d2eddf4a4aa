"""`sd-ext generate`: generate pictures from prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..models import Model
from ..models.words import words_of
from .inputs.files import without_digests
from .pictures import Destination, Record, check_room, encode, name_stem, read_record
from .plan import find_for, plan, unquoted
from .request import Output, Recipe, Run, given, with_options
from .voice import Voice

if TYPE_CHECKING:
    from rich.progress import Progress

    from .drawing import Drawn
    from .prepare import Prepared
    from .preview import Preview


@with_options(Recipe, Output, Run)
def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to draw; quote each prompt.")
    ] = None,
    **options: Any,
) -> None:
    """Draw pictures from words, in files that remember how they were made."""
    output, run = Output(**given(Output, options)), Run(**given(Run, options))
    run.check()
    output.check()
    voice = Voice(run.quiet, run.json)
    wanted = given(Recipe, options)
    recipes = [without_digests(recipe, wanted) for recipe in plan(prompts or [], wanted, run, output.num, voice.tell)]
    run.check_resources(recipes[0].device)
    company = (1, 0) if run.again is None else read_record(run.again).company
    destination = Destination.check(output.out, len(recipes), output.overwrite, output.format)
    for recipe in recipes:
        check_room(destination.form, recipe.prompt + recipe.negative)
    if run.preview is not None:
        Destination.check(run.preview, 1, overwrite=True)
    source = find_for(recipes)
    if hint := unquoted(prompts or []):
        voice.tell(hint)
    if run.dry_run:
        from .dry_run import show

        show(recipes, source, destination, run, voice)
        return

    words, started = words_of(source), time.perf_counter()
    with voice.busy("Loading the model"):
        from .silence import silence_torch

        silence_torch()
        from .advice import doubts
        from .drawing import alike
        from .prepare import prepare
        from .preview import Preview
        from .prompting import look_at_prompt

        prepared = prepare(recipes, source, run, voice.tell)
    for recipe in {replace(recipe, seed=0): recipe for recipe in prepared.recipes}.values():
        look_at_prompt(prepared.pipe, recipe, voice.tell)
    for _, group in groupby(prepared.recipes, alike):
        for doubt in doubts(words, prepared.pipe, list(group)) if words else ():
            voice.tell(doubt)
    preview = Preview(prepared.pipe, run.preview) if run.preview is not None else None
    draw_and_write(Work(prepared, source, company, preview), destination, voice)
    voice.hint(f"{time.perf_counter() - started:.1f} s in all; `sd-ext info FILE` tells how a picture was made.")


@dataclass(frozen=True)
class Work:
    """Pictures to draw.

    Args:
        prepared: the pipeline, and a recipe for each picture.
        model: what the pipeline was loaded from.
        company: for a picture that is made again, how many were drawn at once and its place among them.
        preview: gets the latents after every call.
    """

    prepared: Prepared
    model: Model
    company: tuple[int, int] = (1, 0)
    preview: Preview | None = None

    def pictures(self, bar: Progress, tell: Callable[[str], object]) -> Iterator[Drawn]:
        """Draw, and report on the bar, in the preview and by `tell`."""
        from .drawing import draw, draw_again

        pipe, recipes, equipment = self.prepared
        again = self.company != (1, 0)
        task = bar.add_task("Drawing", total=self.company[0] if again else len(recipes))

        def on_step(pictures: float, latents: object) -> None:
            bar.advance(task, pictures)
            if self.preview is not None:
                self.preview.show(pictures, latents)

        if again:
            yield draw_again(pipe, recipes[0], *self.company, on_step)
        else:
            yield from draw(pipe, recipes, on_step, tell, equipment.put_on)


def draw_and_write(work: Work, destination: Destination, voice: Voice) -> None:
    """Draw pictures; write and report each at once. With several, also a contact sheet."""
    from .made import Circumstances, of_one
    from .pictures.sheet import sheet_of, thumbnail

    pipe, recipes, _ = work.prepared
    circumstances, thumbnails = Circumstances(pipe, work.model), []
    with voice.progress() as bar:
        for drawn in work.pictures(bar, voice.tell):
            record = Record(drawn.recipe, circumstances.of(drawn.recipe) | of_one(drawn))
            path = destination.write(encode(drawn.picture, record, destination.form), name_stem(drawn.recipe.prompt))
            voice.picture(path, record)
            thumbnails.append(thumbnail(drawn.picture))
    if len(recipes) > 1:
        sheet = encode(sheet_of(recipes, thumbnails), form=destination.form)
        voice.picture(destination.write(sheet, "sheet"), None)
