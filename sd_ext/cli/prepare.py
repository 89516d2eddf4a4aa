"""Prepare a pipeline for a recipe: the one place where it is loaded and changed before it draws."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..models import Model
from ..models.pipeline import load_pipeline
from ..models.words import words_of
from .drawing import check_pipeline, default_guidance, default_size
from .machine import Place, Tell, put, resolve_device, set_machine
from .request import Recipe, Resources
from .unet_options import set_unet, wanted_options

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def prepare(
    recipe: Recipe,
    model: Model,
    trust_remote_code: bool,
    tell: Tell = lambda text: None,
    resources: Resources | None = None,
) -> tuple[DiffusionPipeline, Recipe]:
    """Load the model and set all that the recipe names.

    Args:
        recipe: what is wanted. Its prompt and seed do not matter.
        model: the recipe's, found and checked.
        trust_remote_code: run Python code that comes with the model.
        tell: gets one sentence for each thing that is ignored.
        resources: how memory and time are spent; None is one picture at a time, all on the device.

    Returns:
        The pipeline, and the recipe with guidance, size, device and dtype filled in.

    Raises:
        InputError: the model cannot be loaded, or cannot do what the recipe asks.
    """
    check_names(recipe)
    resources = resources or Resources()
    place = Place(*resolve_device(recipe, resources.offload), resources)
    rest = "cpu" if resources.offload else place.device  # what is offloaded is moved when it runs
    pipe = load_pipeline(model, rest, place.dtype, trust_remote_code)
    put(pipe, place)
    size = recipe.size or "{}x{}".format(*default_size(pipe))
    recipe = replace(recipe, size=size, device=place.device.type, dtype=str(place.dtype).removeprefix("torch."))
    check_pipeline(pipe, *recipe.sides, recipe.negative)
    set_sampler(pipe, recipe.sampler, recipe.grid)
    set_unet(pipe, recipe)
    set_machine(pipe, recipe, resources, tell)
    if recipe.guidance is None:
        words = words_of(model)
        recipe = replace(recipe, guidance=(words and words.guidance) or default_guidance(pipe))
    if recipe.negative and recipe.guidance is not None and recipe.guidance <= 1:
        tell("The negative prompt does nothing at guidance 1 or less.")
    return pipe, recipe


def check_names(recipe: Recipe) -> None:
    """Raise `InputError`, with the closest names, for an unknown sampler, grid or U-Net option, or a value of none."""
    from ..schedulers.grids import get_grid
    from ..schedulers.registry import find_sampler

    if recipe.sampler is not None:
        find_sampler(recipe.sampler)
    if recipe.grid is not None:
        get_grid(recipe.grid)
    wanted_options(recipe)


def set_sampler(pipe: DiffusionPipeline, sampler: str | None, grid: str | None) -> None:
    """Replace the pipeline's scheduler if a sampler or a grid is given.

    Args:
        pipe: changed in place.
        sampler: the sampler's name; None keeps the model's own.
        grid: the timestep grid's name; None is the sampler's default.

    Raises:
        InputError: only a grid is given, and the model's own scheduler is not one of this package.
    """
    import sd_ext

    own: Any = pipe.scheduler
    if sampler is not None:
        pipe.register_modules(scheduler=sd_ext.make_scheduler(sampler, own.config, grid=grid))
    elif grid is not None:
        name = type(own).__name__
        if name not in {known.cls.__name__ for known in sd_ext.list_samplers()}:
            raise InputError(f"--grid {grid} needs --sampler too: the model's own {name} is not one of ours")
        pipe.register_modules(scheduler=getattr(sd_ext, name).from_config(own.config, grid=grid))
