"""What a picture would be with very many calls: which settings have such a limit, and the recipe that draws it."""

from __future__ import annotations

from dataclasses import replace

from ..fitted import names_it
from ..pictures import Record
from ..request import Recipe

SAMPLER, GRID = "dpm++ 2m", "lambda_uniform"
"""The best for many calls, as measured with the embedded model and with mixtures."""

NOISE = "draws fresh noise"
OTHER_PATH = "weighs guidance its own way"
UNKNOWN = "no known sampler"
NO_LIMIT = "has no limit of many calls"
NOT_FROM_NOISE = "starts from a picture"


def why_none(record: Record) -> str:
    """Why a picture has no distance to a picture of many calls, in a few words; "" if it has.

    With more and more calls, samplers without fresh noise all reach the same picture: the exact solution for this
    model, prompt and noise. Others have no such picture.

    Args:
        record: of the picture; the sampler that it was drawn with is in it.
    """
    from ...schedulers import list_samplers

    recipe = record.recipe
    if recipe.image or recipe.upscale or recipe.refiner:
        return NOT_FROM_NOISE
    if names_it(recipe.sampler):  # to this very picture
        return ""
    info = next((info for info in list_samplers() if info.name == record.made.get("sampler")), None)
    if info is None:
        return UNKNOWN
    if info.stochastic:
        return NOISE
    if info.order is None:
        return NO_LIMIT
    return OTHER_PATH if info.cls.weighs_unconditional else ""


def reference(recipe: Recipe, calls: int) -> Recipe:
    """The recipe of the picture that distances are measured to: many calls of a good sampler, the U-Net as it is.

    Args:
        recipe: of the picture that is measured. Its settings but sampler, grid, steps and U-Net preset are kept.
        calls: how many.
    """
    return replace(recipe, sampler=SAMPLER, grid=GRID, like=None, steps=calls, unet=None)
