"""Everything about the pictures of recipes that can be known before the model is loaded."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace

from ...models import Model
from ..request import Recipe
from .files import pinned
from .fit import check_pictures
from .possible import check_possible


def looked_at(recipes: Sequence[Recipe], model: Model) -> list[Recipe]:
    """The recipes with the digests of their pictures.

    Args:
        recipes: what is wanted.
        model: their model, found and checked.

    Raises:
        InputError: a picture is missing, has changed or cannot be used, or the model cannot do what a recipe asks.
    """
    done: dict[Hashable, tuple[str, ...]] = {}
    for recipe in recipes:
        if from_pictures(recipe) not in done:
            check_possible(recipe, model)
            done[from_pictures(recipe)] = pinned(recipe).digests
            check_pictures(recipe)
    return [replace(recipe, digests=done[from_pictures(recipe)]) for recipe in recipes]


def from_pictures(recipe: Recipe) -> Hashable:
    """All of a recipe that has to do with pictures to start from."""
    named = recipe.image, recipe.mask, recipe.control, recipe.region, recipe.refiner, recipe.upscale, recipe.digests
    return *named, recipe.size, recipe.strength
