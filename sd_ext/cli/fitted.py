"""The sampler that was fitted to a model, and which pictures it draws where none is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .machine import Tell
from .request import Recipe

NAME = "calibrated"
"""By which a recipe names it."""


def names_it(sampler: str | None) -> bool:
    """Whether this is its name, in any spelling."""
    from ..schedulers.spelling import key

    return sampler is not None and key(sampler) == NAME


def drawn_by_it(recipes: Sequence[Recipe], config: Mapping[str, Any], tell: Tell) -> list[Recipe]:
    """Recipes in which those it was fitted for, and that name no sampler, name it.

    It is what was measured to come nearest to the model's own picture of many calls, at those numbers of calls,
    strengths of guidance between those fitted, and at that size; LoRAs and U-Net presets were not part of it.

    Args:
        recipes: with guidance and size filled in.
        config: of the model's fitted sampler.
        tell: gets one sentence for each number of calls that it will make.

    Raises:
        InputError: the config holds no calibration.
    """
    from ..schedulers.calibrated import Calibration

    fitted = Calibration.from_config(config.get("calibration", {}), f"{NAME}/scheduler_config.json: calibration")
    changed = [replace(recipe, sampler=NAME) if _fits(recipe, fitted) else recipe for recipe in recipes]
    for calls in dict.fromkeys(new.steps for new, old in zip(changed, recipes, strict=True) if new is not old):
        tell(
            f"{calls} calls are made by the sampler that was fitted to this model (--sampler {NAME}); --sampler NAME "
            "takes another."
        )
    return changed


def _fits(recipe: Recipe, fitted: Any) -> bool:
    """Whether a recipe leaves its sampler open, and is what the calibration was made for."""
    other = recipe.sampler, recipe.grid, recipe.like, recipe.guidance_schedule, recipe.image, recipe.unet
    if any(each is not None for each in other) or recipe.lora or recipe.unet_option or recipe.guidance is None:
        return False
    fit, otherwise = fitted.at(recipe.steps, recipe.guidance)
    size = fitted.provenance.get("size")
    return fit.table is not None and not otherwise and (size is None or tuple(size) == recipe.sides)
