"""The pipeline calls that make a picture, one after the other: drawn, refined, enlarged and drawn over."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..machine import place_of
from ..request import Recipe
from ..request.inputs import DENOISE, REFINER_AT
from .fit import fitted, mask_of, open_upright
from .parts import derived, load_parts, refiner_of

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL.Image import Image

Made = Any  # what a pass makes: pictures, or latents (pictures, channels, height, width) for a refiner


@dataclass(frozen=True)
class Pass:
    """One pipeline call.

    Args:
        pipe: the pipeline.
        steps: network evaluations of a whole run.
        share: of them, those that are made.
        arguments: from what the pass before made (None for the first) to further arguments.
        latent: whether latents are wanted, for the next pass.
    """

    pipe: Any
    steps: int
    share: float
    arguments: Callable[[Made], Mapping[str, Any]]
    latent: bool = False


def passes_of(pipe: DiffusionPipeline, recipe: Recipe, number: int) -> list[Pass]:
    """The calls that make the pictures of a batch.

    Args:
        pipe: the prepared pipeline.
        recipe: of one of them; they differ in prompt and seed.
        number: of pictures.
    """
    load_parts(pipe, recipe)
    refiner = refiner_of(pipe, recipe)
    passes = [_first(pipe, recipe, number)]
    if refiner is not None:
        at = REFINER_AT if recipe.refiner_at is None else recipe.refiner_at
        first = passes[0]
        passes = [
            replace(
                first,
                share=first.share - (1 - at),
                arguments=lambda _: {**first.arguments(None), "denoising_end": at},
                latent=True,
            ),
            Pass(refiner, recipe.steps, 1 - at, lambda latents: {"image": latents, "denoising_start": at}),
        ]
    if recipe.upscale is not None:
        passes.append(_enlarged(pipe, recipe))
    return passes


def _first(pipe: DiffusionPipeline, recipe: Recipe, number: int) -> Pass:
    size = recipe.sides
    task = "mask" if recipe.mask else "image" if recipe.image else "words"
    given: dict[str, Any] = {"width": size[0], "height": size[1]}
    # One copy for each picture of the batch: each is encoded with its own random numbers.
    if recipe.image is not None:
        given |= {"image": [fitted(open_upright("--image", recipe.image), size)] * number}
        given |= {"strength": recipe.drawn_strength}
    if recipe.mask is not None:
        given |= {"mask_image": [mask_of(open_upright("--mask", recipe.mask), size, recipe.mask)] * number}
    made = derived(pipe, task, _networks(pipe, recipe))
    given |= _control_arguments(recipe, size, task)
    partly = "strength" in given and "strength" in inspect.signature(made.__call__).parameters
    return Pass(made, recipe.steps, recipe.drawn_strength if partly else 1.0, lambda _: given)


def _enlarged(pipe: DiffusionPipeline, recipe: Recipe) -> Pass:
    size, share = recipe.final_sides, DENOISE if recipe.denoise is None else recipe.denoise
    given = {"width": size[0], "height": size[1], "strength": share, **_control_arguments(recipe, size, "image")}
    made = derived(pipe, "image", _networks(pipe, recipe))
    steps = recipe.upscale_steps or recipe.steps
    return Pass(made, steps, share, lambda pictures: {**given, "image": [fitted(each, size) for each in pictures]})


def _networks(pipe: DiffusionPipeline, recipe: Recipe) -> list[Any]:
    return [place_of(pipe).networks[control.network] for control in recipe.controls]


def _control_arguments(recipe: Recipe, size: tuple[int, int], task: str) -> dict[str, Any]:
    """What ControlNets see, under the name that the task's pipeline has for it."""
    if not recipe.control:
        return {}
    pictures = [fitted(open_upright("--control", control.picture), size) for control in recipe.controls]
    scales = [control.scale for control in recipe.controls]
    alone = len(pictures) == 1
    return {
        ("image" if task == "words" else "control_image"): pictures[0] if alone else pictures,
        "controlnet_conditioning_scale": scales[0] if alone else scales,
    }


def kept_outside(recipe: Recipe, pictures: Sequence[Image]) -> list[Image]:
    """The pictures, with what is outside the mask as it was: the autoencoder gives back nothing to the bit."""
    if recipe.image is None or recipe.mask is None:
        return list(pictures)
    from PIL import Image as Pictures

    mask = mask_of(open_upright("--mask", recipe.mask), recipe.sides, recipe.mask)
    before = fitted(open_upright("--image", recipe.image), recipe.sides)
    return [Pictures.composite(picture.convert("RGB"), before, mask) for picture in pictures]
