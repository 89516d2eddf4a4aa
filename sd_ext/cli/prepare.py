"""Prepare a pipeline for recipes: the one place where it is loaded and changed before it draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from ..errors import InputError
from ..models import Model
from ..models.calibrated import calibrated_config
from ..models.pipeline import load_pipeline
from ..models.words import words_of
from . import checks
from .additions import add
from .drawing import check_pipeline, default_guidance, default_size
from .equipment import Equipment, equipped
from .fitted import drawn_by_it
from .inputs.fit import natural_size, open_upright, told_of_pictures
from .inputs.look import from_pictures, looked_at
from .inputs.parts import load_parts
from .machine import Place, Tell, place_of, put, resolve_device, set_machine
from .request import Recipe, Run
from .unet_options import wanted_options

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


MILD = 1.6
"""Guidance for samplers with CFG++ where none is given."""


class Prepared(NamedTuple):
    """What is needed to draw.

    Args:
        pipe: the pipeline, equipped for the first recipe.
        recipes: with guidance, size, device and dtype filled in.
        equipment: equips the pipeline for any of them.
    """

    pipe: DiffusionPipeline
    recipes: list[Recipe]
    equipment: Equipment


def prepare(recipes: Sequence[Recipe], model: Model, run: Run, tell: Tell = lambda text: None) -> Prepared:
    """Load the model and make sure that it can do all that the recipes name.

    Args:
        recipes: what is wanted; of one model, autoencoder and set of learned words, and for one machine.
        model: the recipes', found and checked.
        run: how memory and time are spent, and whether Python code that comes with the model is run.
        tell: gets one sentence for each thing that is ignored.

    Raises:
        InputError: the model cannot be loaded, or cannot do what a recipe asks.
    """
    recipes = _checked(recipes, model)
    place = Place(*resolve_device(recipes[0], run.offload), run)
    pipe = load_pipeline(model, place.rest, place.dtype, run.trust_remote_code)
    put(pipe, place)
    add(pipe, recipes[0], tell)
    fitted = calibrated_config(model) or {}
    equipment = Equipment(pipe, tell, lambda recipe: set_machine(pipe, recipe, run, tell), fitted)
    return _ready(pipe, equipment, recipes, model, run, tell)


def prepare_again(
    kept: Prepared, recipes: Sequence[Recipe], model: Model, run: Run, tell: Tell = lambda text: None
) -> Prepared:
    """`prepare`, of a pipeline that is loaded already.

    Args:
        kept: what `prepare` made for recipes of the same model, device, dtype, autoencoder and learned words.
        recipes, model, run, tell: see there. What equipment has to say goes to the `tell` that it was made with.
    """
    return _ready(kept.pipe, kept.equipment, _checked(recipes, model), model, run, tell)


def _checked(recipes: Sequence[Recipe], model: Model) -> list[Recipe]:
    """The recipes with what is known of their pictures. Raises `InputError` for what can be told before loading."""
    for recipe in _differing(recipes):
        check_names(recipe)
    return looked_at(recipes, model)


def _ready(
    pipe: DiffusionPipeline, equipment: Equipment, recipes: list[Recipe], model: Model, run: Run, tell: Tell
) -> Prepared:
    """A loaded pipeline, equipped for the first recipe, when all of them have been tried."""
    place, words = place_of(pipe), words_of(model)
    usual = (words and words.guidance) or default_guidance(pipe)
    machine = {"device": place.device.type, "dtype": str(place.dtype).removeprefix("torch.")}
    recipes = [_complete(pipe, replace(recipe, **machine), _guidance(recipe, usual, tell)) for recipe in recipes]
    fitted = calibrated_config(model)
    if fitted is not None:
        recipes = drawn_by_it(recipes, fitted, tell)
    for recipe in {from_pictures(recipe): recipe for recipe in recipes}.values():
        load_parts(pipe, recipe, run.trust_remote_code, tell)
        for sentence in told_of_pictures(recipe):
            tell(sentence)
    if any(recipe.negative and recipe.guidance is not None and recipe.guidance <= 1 for recipe in recipes):
        tell("The negative prompt does nothing at guidance 1 or less.")
    for recipe in (*_differing(recipes[1:]), recipes[0]):  # so that what cannot be is said before anything is drawn
        equipment.put_on(recipe)
    return Prepared(pipe, recipes, equipment)


def _guidance(recipe: Recipe, usual: float, tell: Tell) -> float:
    """The guidance to draw with: the recipe's, or the usual one, which is less for samplers with CFG++."""
    if recipe.guidance is not None:
        return recipe.guidance
    from ..schedulers.find import understand

    weighs = recipe.sampler is not None and understand(recipe.sampler, recipe.like).info.cls.mild_guidance
    if not weighs or usual <= MILD:
        return usual
    tell(f"{recipe.sampler} is drawn with guidance {MILD:g}: with CFG++ 1 to 2 does what 5 to 12 does elsewhere.")
    return MILD


def _differing(recipes: Sequence[Recipe]) -> list[Recipe]:
    """One recipe of each equipment, in order."""
    return list({equipped(recipe): recipe for recipe in recipes}.values())


def _complete(pipe: DiffusionPipeline, recipe: Recipe, guidance: float) -> Recipe:
    """The recipe with size and guidance. Raises `InputError` if the pipeline cannot draw it."""
    size = recipe.size or "{}x{}".format(*usual_size(pipe, recipe))
    recipe = replace(recipe, size=size, guidance=guidance if recipe.guidance is None else recipe.guidance)
    check_pipeline(pipe, *recipe.sides, recipe.negative)
    if recipe.upscale is not None:
        checks.check_sides(recipe.final_sides, "--upscale")
    return recipe


def usual_size(pipe: DiffusionPipeline, recipe: Recipe) -> tuple[int, int]:
    """The (width, height) to draw at where none is given: the model's own or, of a picture, the shape of that one."""
    own = default_size(pipe)
    if recipe.image is None:
        return own
    return natural_size(open_upright("--image", recipe.image).size, own, getattr(pipe, "vae_scale_factor", 8))


def check_names(recipe: Recipe) -> None:
    """Raise `InputError` for an unknown sampler, grid or U-Net option, with the closest names, or a value of none."""
    from ..schedulers import guidance
    from ..schedulers.find import understand
    from ..schedulers.grids import get_grid
    from ..schedulers.programs import get_program

    program = None if recipe.like is None else get_program(recipe.like)
    if recipe.sampler is not None:
        understand(recipe.sampler, recipe.like)
    elif program:
        raise InputError(f"--like {recipe.like} needs --sampler: which of the samplers of {program.title} is it?")
    if recipe.grid is not None and not (program and program.grid_options(recipe.grid) is not None):
        get_grid(recipe.grid)
    if recipe.guidance_schedule is not None:
        guidance.check(recipe.guidance_schedule, {})
        if recipe.sampler is not None and understand(recipe.sampler, recipe.like).info.cls.weighs_unconditional:
            raise InputError(f"{recipe.sampler} weighs the halves of guidance itself: leave --guidance-schedule out")
    wanted_options(recipe)
