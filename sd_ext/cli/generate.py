"""`sd-ext generate`: generate pictures from prompts."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .. import __version__
from ..errors import InputError
from ..models import Model, SingleFile, find_model, find_part
from ..models.words import words_of
from . import checks
from .additions import check_additions
from .lines import NUMBER, Line, read_prompts
from .pictures import Destination, Record, encode, name_stem, read_record
from .request import Output, Recipe, Run, given, with_options
from .request.option import declared

if TYPE_CHECKING:
    from rich.console import Console

    from .prepare import Prepared

ANY = -1  # the seed that stands for one drawn
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
    for recipe in {recipe.lora: recipe for recipe in recipes}.values():
        check_additions(recipe)
    source = find_for(recipes[0])
    source.check()
    words = words_of(source)

    from rich.console import Console
    from rich.text import Text

    say = Console(stderr=True, highlight=False)

    @cache
    def tell(text: str) -> None:
        """Say something, once."""
        say.print(Text(text, style="yellow"))

    started = time.perf_counter()
    with say.status("Loading the model"):
        from .advice import doubts
        from .drawing import alike
        from .prepare import prepare
        from .prompting import look_at_prompt

        prepared = prepare(recipes, source, run, tell)
    for recipe in {replace(recipe, seed=0): recipe for recipe in prepared.recipes}.values():
        look_at_prompt(prepared.pipe, recipe, tell)
    for _, group in groupby(prepared.recipes, alike):
        for doubt in doubts(words, prepared.pipe, list(group)) if words else ():
            tell(doubt)
    for path in _draw_and_write(prepared, destination, say, tell):
        print(path)
    say.print(f"{time.perf_counter() - started:.1f} s in all; `sd-ext info FILE` tells how a picture was made.")


def find_for(recipe: Recipe) -> Model:
    """Find the model of a recipe. Raises `ModelError` if there is none, or an option does not go with it."""
    options: dict[str, Any] = {"revision": recipe.revision, "prediction_type": recipe.prediction_type}
    found = find_model(recipe.model, recipe.variant, **options)
    if recipe.vae is not None and isinstance(found, SingleFile) and "vae" in found.missing:
        found = find_model(recipe.model, recipe.variant, **options, others={"vae": find_part(recipe.vae, "vae")})
    return found


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
        _check_again(prompts, wanted, number, run)
        return [read_record(run.again).recipe]
    lines: list[Line] = [("", {REQUIRED: prompt}) for prompt in prompts]
    lines += read_prompts(run.lines) if run.lines is not None else []
    if run.start is not None:
        settings = read_record(run.start).recipe.as_json()
        lines = lines or [("", {REQUIRED: settings[REQUIRED]})]
    settings |= wanted
    if not lines:
        checks.check_prompts([])
    checks.check_number(number, len(lines))
    if settings.get("seed") == ANY:
        settings["seed"] = checks.resolve_seed(ANY, number)  # the same for all prompts
    recipes = [recipe for where, line in lines for recipe in _of_line({**settings, **line}, number, where)]
    checks.check_number(1, len(recipes))
    return recipes


def _of_line(settings: dict[str, Any], number: int, where: str) -> list[Recipe]:
    """The recipes of one prompt, checked: as many as it says, with seeds counting up."""
    try:
        number = settings.pop(NUMBER, number)
        checks.check_number(number, 1)
        first = checks.resolve_seed(settings.get("seed", 0), number)
        recipes = [Recipe(**{**settings, "seed": first + i}) for i in range(number)]
        recipes[0].check()
    except InputError as error:
        if not where:
            raise
        raise InputError(f"{where}: {error}") from None
    return recipes


def _check_again(prompts: Sequence[str], wanted: Mapping[str, Any], number: int, run: Run) -> None:
    """Raise `InputError` for anything that would make another picture than the one of --again."""
    flags = {each.name: each.flag for each in declared(Recipe)}
    others = [*(["a prompt"] if prompts else []), *(flags[name] for name in wanted)]
    others += ["--num"] if number != 1 else []
    others += ["--prompts"] if run.lines is not None else []
    if others:
        raise InputError(f"--again makes the same picture; to change it ({', '.join(others)}), give --from instead")


def _draw_and_write(
    prepared: Prepared, destination: Destination, say: Console, tell: Callable[[str], object]
) -> list[Path]:
    """Generate the pictures and write each at once; with several, also a contact sheet. Returns the paths."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from .drawing import draw
    from .pictures.sheet import sheet_of, thumbnail

    columns = TextColumn("Drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    pipe, recipes, equipment = prepared
    paths, thumbnails = [], []
    # The bar is on stderr: stdout gets the paths and nothing else.
    with Progress(*columns, console=say, transient=True, redirect_stdout=False, disable=not say.is_terminal) as bar:
        task = bar.add_task("Drawing", total=len(recipes))
        for recipe, picture in draw(pipe, recipes, lambda part: bar.advance(task, part), tell, equipment.put_on):
            made = {"software": f"sd_ext {__version__}", "scheduler": type(pipe.scheduler).__name__}
            paths.append(destination.write(encode(picture, Record(recipe, made)), name_stem(recipe.prompt)))
            thumbnails.append(thumbnail(picture))
    if len(recipes) > 1:
        paths.append(destination.write(encode(sheet_of(recipes, thumbnails)), "sheet"))
    return paths
