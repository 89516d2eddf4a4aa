"""`sd-ext generate`: generate pictures from prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError
from ..models import Model
from ..models.words import words_of
from .inputs.files import without_digests
from .job import MANIFEST, Job
from .pictures import Destination, Record, check_room, encode, name_stem, read_record
from .plan import find_for, plan, unquoted
from .processes import Processes
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
    processes = Processes.of()
    job = job_of(recipes, destination, output, run, processes)
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
    if job is not None:
        job.begin()
        numbers = job.missing(processes)
        if processes.count > 1:  # a launcher may have been forgotten about
            voice.tell(
                f"Process {processes.number + 1} of {processes.count}, as RANK and WORLD_SIZE say: it draws "
                f"{len(numbers)} of {len(recipes)} pictures, numbered as {job.folder / MANIFEST} lists them."
            )
        if left := len(recipes) - len(numbers):
            voice.hint(f"{left} of {len(recipes)} pictures are there already, or are drawn by other processes.")
        recipes = [recipes[number] for number in numbers]
        if not recipes:
            report_shards(job, processes, voice)
            return
        processes.choose_gpu()
    with voice.busy("Loading the model"):
        from .silence import silence_torch

        silence_torch()
        from ..seams.less import import_less

        import_less()
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
    work = Work(prepared, source, company, preview)
    if job is None:
        draw_and_write(work, destination, voice)
    else:
        draw_job(work, job, numbers, processes, destination.form, voice)
    seconds = time.perf_counter() - started
    speed = f", {len(recipes) / seconds:.2f} pictures a second" if len(recipes) > 1 else ""
    voice.hint(f"{seconds:.1f} s in all{speed}; `sd-ext info FILE` tells how a picture was made.")


def job_of(
    recipes: Sequence[Recipe], destination: Destination, output: Output, run: Run, processes: Processes
) -> Job | None:
    """The job of --manifest, --shards and of several processes; None for pictures that are named by their prompts.

    Raises:
        InputError: it cannot be numbered: one file, or a picture that is made again.
    """
    if not (output.manifest or output.shards or processes.count > 1):
        return None
    why = f"{processes.count} processes" if processes.count > 1 else "--shards" if output.shards else "--manifest"
    if destination.file is not None:
        raise InputError(f"{why}: pictures are numbered; give --out a folder, not {destination.file}")
    if run.again is not None:
        raise InputError(f"{why}: --again makes one picture; leave one of them out")
    return Job(destination.folder, recipes, destination.ending, output.shards or 0)


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


def drawn_and_recorded(work: Work, voice: Voice) -> Iterator[tuple[Drawn, Record]]:
    """Draw pictures, with a bar: each, and how it was made."""
    from .made import Circumstances, of_one

    circumstances = Circumstances(work.prepared.pipe, work.model)
    with voice.progress() as bar:
        for drawn in work.pictures(bar, voice.tell):
            yield drawn, Record(drawn.recipe, circumstances.of(drawn.recipe) | of_one(drawn))


def draw_and_write(work: Work, destination: Destination, voice: Voice) -> None:
    """Draw pictures; write and report each at once. With several, also a contact sheet."""
    from .pictures.sheet import sheet_of, thumbnail

    recipes, thumbnails = work.prepared.recipes, []
    for drawn, record in drawn_and_recorded(work, voice):
        path = destination.write(encode(drawn.picture, record, destination.form), name_stem(drawn.recipe.prompt))
        voice.picture(path, record)
        thumbnails.append(thumbnail(drawn.picture))
    if len(recipes) > 1:
        sheet = encode(sheet_of(recipes, thumbnails), form=destination.form)
        voice.picture(destination.write(sheet, "sheet"), None)


def draw_job(work: Work, job: Job, numbers: Sequence[int], processes: Processes, form: str, voice: Voice) -> None:
    """Draw what a job lacks. Each picture is written at once, and each shard as soon as it is complete.

    Args:
        work: the pictures, in the order of `numbers`.
        numbers: their places in the job.
        form: of the pictures.
    """
    for number, (drawn, record) in zip(numbers, drawn_and_recorded(work, voice), strict=True):
        path = job.write(number, encode(drawn.picture, record, form))
        if job.shard:
            report_shards(job, processes, voice, number)
        else:
            voice.picture(path, record)
    report_shards(job, processes, voice)


def report_shards(job: Job, processes: Processes, voice: Voice, number: int | None = None) -> None:
    """Pack the shards that are complete, and say which; of a picture's number, its own only."""
    for path in job.pack(processes, number):
        voice.picture(path, None)
