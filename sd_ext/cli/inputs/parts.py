"""Networks beside the pipeline: ControlNets and SDXL's refiner, loaded once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import InputError, ModelError
from ...models import find_model, find_part
from ...models.folder import Folder
from ...models.pipeline import load_pipeline
from ..machine import place_of, put, set_machine
from ..request import Recipe
from .possible import CHANNELS, REFINER, check_kind, check_width

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def load_parts(
    pipe: DiffusionPipeline,
    recipe: Recipe,
    trust_remote_code: bool = False,
    tell: Callable[[str], object] = lambda text: None,
) -> None:
    """Load what a recipe names beside the pipeline, unless it is loaded already.

    Args:
        pipe: the prepared pipeline.
        recipe: what is wanted.
        trust_remote_code: run Python code that comes with a refiner.
        tell: see `set_machine`.

    Raises:
        InputError: a network cannot be loaded, or does not fit the pipeline.
    """
    place = place_of(pipe)
    unet: Any = getattr(pipe, "unet", None)
    taken, given = (getattr(getattr(unet, "config", None), name, 4) for name in CHANNELS)
    check_kind(recipe, recipe.model, type(pipe).__name__, taken - given)
    for control in recipe.controls:
        if control.network not in place.networks:
            network = _control_network(control.network, place.dtype)
            check_width(control.network, network.config, unet.config)
            place.networks[control.network] = network.to(place.rest).eval()
    if recipe.refiner is not None and recipe.refiner not in place.networks:
        if not type(pipe).__name__.startswith("StableDiffusionXL"):
            raise InputError(f"--refiner is for Stable Diffusion XL, which {recipe.model} is not; leave it out")
        refiner = load_pipeline(find_model(recipe.refiner), place.rest, place.dtype, trust_remote_code)
        if type(refiner).__name__ != REFINER:
            raise InputError(f"--refiner {recipe.refiner} is a {type(refiner).__name__}, not a refiner of SDXL")
        put(refiner, replace(place, networks={}))
        set_machine(refiner, recipe, place.resources, tell)
        refiner.set_progress_bar_config(disable=True)
        place.networks[recipe.refiner] = refiner


def _control_network(name: str, dtype: Any) -> Any:
    from diffusers import ControlNetModel

    if Path(name).expanduser().is_dir():
        found = find_part(name, "controlnet")
        assert isinstance(found, Folder)
        return found.load_as(ControlNetModel, "controlnet", dtype)
    try:
        return ControlNetModel.from_pretrained(name, torch_dtype=dtype, use_safetensors=True)
    except Exception as error:  # anything at all can be wrong with a stranger's files
        raise ModelError(f"--control {name} cannot be loaded from the Hub: {error}") from error


def refiner_of(pipe: DiffusionPipeline, recipe: Recipe) -> Any:
    """The refiner that a recipe names, with the sampler that the pipeline has now; None if it names none."""
    if recipe.refiner is None:
        return None
    load_parts(pipe, recipe)
    refiner, own = place_of(pipe).networks[recipe.refiner], getattr(pipe, "scheduler")  # noqa: B009
    refiner.register_modules(scheduler=type(own).from_config(own.config))
    return refiner


def derived(pipe: DiffusionPipeline, task: str, networks: Sequence[Any] = ()) -> Any:
    """The pipeline for a task, of the same parts.

    Args:
        pipe: the pipeline.
        task: "words", "image" or "mask".
        networks: ControlNets, if any.

    Raises:
        InputError: Diffusers has no such pipeline for this family of models.
    """
    from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image

    name = type(pipe).__name__
    instructed = "InstructPix2Pix" in name
    if instructed or (task == "words" and not networks and "Img2Img" not in name and "Inpaint" not in name):
        return pipe
    kinds = {"words": AutoPipelineForText2Image, "image": AutoPipelineForImage2Image, "mask": AutoPipelineForInpainting}
    extra = {"controlnet": networks[0] if len(networks) == 1 else list(networks)} if networks else {}
    try:
        made = kinds[task].from_pipe(pipe, **extra)
    except ValueError as error:
        raise InputError(f"{name} has no pipeline for this in Diffusers: {error}") from error
    made.set_progress_bar_config(disable=True)
    return made
