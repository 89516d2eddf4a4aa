"""Prepare a pipeline for a recipe: the one place where it is loaded and changed before it draws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from ..models import Model
from ..models.pipeline import load_pipeline
from ..models.words import words_of
from .drawing import check_pipeline, default_guidance, default_size
from .request import Recipe
from .request.machine import AUTO

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

Tell = Callable[[str], object]


def prepare(
    recipe: Recipe, model: Model, trust_remote_code: bool, tell: Tell = lambda text: None
) -> tuple[DiffusionPipeline, Recipe]:
    """Load the model and set all that the recipe names.

    Args:
        recipe: what is wanted. Its prompt and seed do not matter.
        model: the recipe's, found and checked.
        trust_remote_code: run Python code that comes with the model.
        tell: gets one sentence for each thing that is ignored.

    Returns:
        The pipeline, and the recipe with guidance, size, device and dtype filled in.

    Raises:
        InputError: the model cannot be loaded, or cannot do what the recipe asks.
    """
    check_names(recipe)
    device, dtype = resolve_device(recipe)
    pipe = load_pipeline(model, device, dtype, trust_remote_code)
    size = recipe.size or "{}x{}".format(*default_size(pipe))
    recipe = replace(recipe, size=size, device=device.type, dtype=str(dtype).removeprefix("torch."))
    check_pipeline(pipe, *recipe.sides, recipe.negative)
    set_sampler(pipe, recipe.sampler, recipe.grid)
    set_unet(pipe, recipe.unet)
    if recipe.guidance is None:
        words = words_of(model)
        recipe = replace(recipe, guidance=(words and words.guidance) or default_guidance(pipe))
    if recipe.negative and recipe.guidance is not None and recipe.guidance <= 1:
        tell("The negative prompt does nothing at guidance 1 or less.")
    return pipe, recipe


def resolve_device(recipe: Recipe) -> tuple[torch.device, torch.dtype]:
    """The device and dtype to use. Raises `InputError` if CUDA is asked for and not available."""
    import torch

    cuda = torch.cuda.is_available()
    if recipe.device == "cuda" and not cuda:
        raise InputError("--device cuda: torch finds no CUDA device here; leave --device out or choose cpu")
    on_cuda = cuda and recipe.device != "cpu"
    dtype = recipe.dtype if recipe.dtype != AUTO else "float16" if on_cuda else "float32"
    return torch.device("cuda" if on_cuda else "cpu"), getattr(torch, dtype)


def check_names(recipe: Recipe) -> None:
    """Raise `UnknownNameError`, which lists the closest names, for an unknown sampler, grid or U-Net preset."""
    from ..schedulers.grids import get_grid
    from ..schedulers.registry import find_sampler

    if recipe.sampler is not None:
        find_sampler(recipe.sampler)
    if recipe.grid is not None:
        get_grid(recipe.grid)
    if recipe.unet is not None:
        from ..unets.presets import check_preset

        check_preset(recipe.unet)


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


def set_unet(pipe: DiffusionPipeline, name: str | None) -> None:
    """Apply a U-Net preset to the pipeline, if one is given. Raises `InputError` if the network cannot have it."""
    if name is None:
        return
    from ..unets.presets import with_preset

    network: Any = getattr(pipe, "unet", None)
    if network is None:
        raise InputError(f"--unet {name}: {type(pipe).__name__} has no U-Net; leave --unet out")
    pipe.register_modules(unet=with_preset(network, name))
