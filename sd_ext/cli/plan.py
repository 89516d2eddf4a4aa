"""Which pictures a command line asks for, and of which model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..models import Model, SingleFile, find_model, find_part
from . import checks
from .additions import check_additions
from .lines import NUMBER, Line, read_prompts
from .pictures import read_record, read_told
from .request import Recipe, Run
from .request.option import declared

ANY = -1  # the seed that stands for one drawn
REQUIRED = "prompt"  # the only setting of a recipe that has no default


def plan(
    prompts: Sequence[str],
    wanted: Mapping[str, Any],
    run: Run,
    number: int,
    tell: Callable[[str], object] = lambda text: None,
) -> list[Recipe]:
    """The recipe of every picture, checked as far as can be without the model.

    Args:
        prompts: as given; none where a picture says what to draw.
        wanted: the options of a recipe that were given.
        run: says which picture to start from, if any.
        number: pictures for each prompt.
        tell: gets one sentence about what a picture says and is not taken from it.

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
        settings = _settings_of(run.start, wanted, tell)
        lines = lines or [("", {REQUIRED: settings[REQUIRED]})] if REQUIRED in settings else lines
    settings |= wanted
    if not lines:
        checks.check_prompts([])
    checks.check_number(number, len(lines))
    if settings.get("seed") == ANY:
        settings["seed"] = checks.resolve_seed(ANY, number)  # the same for all prompts
    recipes = [recipe for where, line in lines for recipe in _of_line({**settings, **line}, number, where)]
    checks.check_number(1, len(recipes))
    return recipes


def _settings_of(path: Path, wanted: Mapping[str, Any], tell: Callable[[str], object]) -> dict[str, Any]:
    """The settings that a picture names; says which of them have no counterpart."""
    told = read_told(path)
    dropped = [each for each in told.dropped if not ("model" in wanted and each.lower().startswith("model "))]
    dropped = [each for each in dropped if not ("grid" in wanted and "--grid" in each)]
    if dropped:
        tell(f"Not taken from {path}: {', '.join(dropped)}.")
    if told.record is not None:
        return vars(told.record.recipe).copy()
    kept = {name: value for name, value in told.settings.items() if name not in wanted}
    Recipe.from_json({REQUIRED: "none", **kept}, str(path))  # raises where a value cannot work
    return kept


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


def unquoted(prompts: Sequence[str]) -> str:
    """A hint for prompts that look like one whose quotes were forgotten; "" for others."""
    if len(prompts) < 2 or any(len(prompt.split()) != 1 for prompt in prompts):
        return ""
    whole = " ".join(prompts)
    return f'Each of these {len(prompts)} words is a prompt of its own; for one picture, quote them: "{whole}"'


def find_for(recipes: Sequence[Recipe]) -> Model:
    """Find the model of recipes, and check that it and all that is added to it are there.

    Raises:
        InputError: something is missing, or an option does not go with the model.
    """
    for recipe in {(recipe.lora, recipe.lora_blocks): recipe for recipe in recipes}.values():
        check_additions(recipe)
    first = recipes[0]
    options: dict[str, Any] = {"revision": first.revision, "prediction_type": first.prediction_type}
    found = find_model(first.model, first.variant, **options)
    if first.vae is not None and isinstance(found, SingleFile) and "vae" in found.missing:
        found = find_model(first.model, first.variant, **options, others={"vae": find_part(first.vae, "vae")})
    found.check()
    return found
