"""`sd-ext generate`: generate pictures from prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import __version__
from ..errors import InputError
from ..models import Model, find_model
from ..models.words import words_of
from . import checks
from .pictures import Destination, Record, encode, name_stem, read_record
from .request import Output, Recipe, Run, given, with_options
from .request.option import declared

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from rich.console import Console

REQUIRED = "prompt"  # the only setting of a recipe that has no default


@with_options(Recipe, Output, Run)
def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to draw; quote each prompt.")
    ] = None,
    **options: Any,
) -> None:
    """Draw pictures from words and write them as PNGs that remember how they were made."""
    output, run = Output(**given(Output, options)), Run(**given(Run, options))
    run.check()
    recipes = plan(prompts or [], given(Recipe, options), run, output.num)
    run.check_resources(recipes[0].device)
    destination = Destination.check(output.out, len(recipes), output.overwrite)
    source = find_for(recipes[0])
    source.check()
    words = words_of(source)

    from rich.console import Console
    from rich.text import Text

    say = Console(stderr=True, highlight=False)

    def tell(text: str) -> None:
        say.print(Text(text, style="yellow"))

    started = time.perf_counter()
    with say.status("Loading the model"):
        from .advice import doubts
        from .prepare import prepare
        from .prompting import look_at_prompt

        pipe, prepared = prepare(recipes[0], source, run.trust_remote_code, tell, run)
    recipes = [replace(prepared, prompt=recipe.prompt, seed=recipe.seed) for recipe in recipes]
    for recipe in {recipe.prompt: recipe for recipe in recipes}.values():
        look_at_prompt(pipe, recipe, tell)
    for doubt in doubts(words, pipe, recipes) if words else ():
        tell(doubt)
    for path in _draw_and_write(pipe, recipes, destination, say, tell):
        print(path)
    say.print(f"{time.perf_counter() - started:.1f} s in all; `sd-ext info FILE` tells how a picture was made.")


def find_for(recipe: Recipe) -> Model:
    """Find the model of a recipe. Raises `ModelError` if there is none, or an option does not go with it."""
    return find_model(recipe.model, recipe.variant, revision=recipe.revision, prediction_type=recipe.prediction_type)


def plan(prompts: Sequence[str], wanted: Mapping[str, Any], run: Run, number: int) -> list[Recipe]:
    """The recipe of every picture, checked as far as can be without the model.

    Args:
        prompts: as given; none where a picture says what to draw.
        wanted: the options of a recipe that were given.
        run: says which picture to start from, if any.
        number: pictures for each prompt.

    Raises:
        InputError: a value cannot work, or is given beside --again.
    """
    settings: dict[str, Any] = {}
    if run.again is not None:
        _check_again(prompts, wanted, number)
        return [read_record(run.again).recipe]
    if run.start is not None:
        settings = read_record(run.start).recipe.as_json()
        prompts = prompts or [settings[REQUIRED]]
    settings |= wanted
    checks.check_prompts(prompts)
    checks.check_number(number, len(prompts))
    first = checks.resolve_seed(settings.get("seed", 0), number)
    recipes = [Recipe(**{**settings, "prompt": prompt, "seed": first + i}) for prompt in prompts for i in range(number)]
    for recipe in recipes[::number]:
        recipe.check()
    return recipes


def _check_again(prompts: Sequence[str], wanted: Mapping[str, Any], number: int) -> None:
    """Raise `InputError` for anything that would make another picture than the one of --again."""
    flags = {each.name: each.flag for each in declared(Recipe)}
    others = [*(["a prompt"] if prompts else []), *(flags[name] for name in wanted)]
    others += ["--num"] if number != 1 else []
    if others:
        raise InputError(f"--again makes the same picture; to change it ({', '.join(others)}), give --from instead")


def _draw_and_write(
    pipe: DiffusionPipeline,
    recipes: Sequence[Recipe],
    destination: Destination,
    say: Console,
    tell: Callable[[str], object],
) -> list[Path]:
    """Generate the pictures and write each at once; with several, also a contact sheet. Returns the paths."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from .drawing import batches, draw
    from .pictures.sheet import sheet_of, thumbnail

    columns = TextColumn("Drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    count, paths, thumbnails = len(batches(pipe, recipes)), [], []
    made = {"software": f"sd_ext {__version__}", "scheduler": type(pipe.scheduler).__name__}
    # The bar is on stderr: stdout gets the paths and nothing else.
    with Progress(*columns, console=say, transient=True, redirect_stdout=False, disable=not say.is_terminal) as bar:
        task = bar.add_task("Drawing", total=None)
        advance = lambda calls: bar.update(task, total=count * calls, advance=1)  # noqa: E731
        for recipe, picture in draw(pipe, recipes, advance, tell):
            paths.append(destination.write(encode(picture, Record(recipe, made)), name_stem(recipe.prompt)))
            thumbnails.append(thumbnail(picture))
    if len(recipes) > 1:
        paths.append(destination.write(encode(sheet_of(recipes, thumbnails)), "sheet"))
    return paths
