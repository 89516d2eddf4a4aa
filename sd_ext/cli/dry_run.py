"""`sd-ext generate --dry-run`: what would be drawn, with which weights, without loading them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from ..errors import printable
from ..models import Model
from .memory import memory_line
from .pictures import Destination
from .request import Recipe, Run
from .voice import Voice


def show(recipes: Sequence[Recipe], model: Model, destination: Destination, run: Run, voice: Voice) -> None:
    """Check all that can be checked without loading the model, and print the plan. Nothing is downloaded or written.

    Args:
        recipes: what is to be drawn.
        model: the recipes' model.
        destination: where to.
        run: with how memory and time are to be spent.
        voice: with its `as_json`, one JSON object for each picture.

    Raises:
        InputError: a name is unknown, or there is no such device.
    """
    from .silence import silence_torch

    silence_torch()
    from .inputs.look import looked_at
    from .machine import resolve_device
    from .prepare import check_names

    for recipe in {replace(recipe, prompt="", seed=0): recipe for recipe in recipes}.values():
        check_names(recipe)
    recipes = looked_at(recipes, model)
    device, dtype = resolve_device(recipes[0], run.offload)
    if voice.as_json:
        for recipe in recipes:
            print(json.dumps({"recipe": recipe.as_json()}))
        return
    settings = {name: value for name, value in recipes[0].as_json().items() if name not in ("prompt", "seed")}
    settings |= {"device": str(device), "dtype": str(dtype).removeprefix("torch.")}
    for name, value in settings.items():
        print(f"{name:<10} {printable(str(value))}")
    where = destination.folder / destination.file if destination.file else destination.folder
    takes = memory_line(recipes[0], model, settings["dtype"], run)
    print(f"{'memory':<10} {'; '.join([takes, *spending(recipes[0], run)])}")
    print(f"{'pictures':<10} {len(recipes)}, as {destination.form}, to {where}")
    for recipe in recipes:
        print(f"{'':<10} {printable(recipe.prompt)} ({recipe.seed})")


def spending(recipe: Recipe, run: Run) -> list[str]:
    """How memory and time are spent otherwise than usual, in words."""
    said = [f"{run.batch} pictures at once" if run.batch > 1 else ""]
    said += [f"offload {run.offload}" if run.offload else "", "VAE in slices" if run.vae_slicing else ""]
    said += ["VAE in tiles" if recipe.vae_tiling else "", f"attention {recipe.attention}" if recipe.attention else ""]
    said += ["U-Net compiled" if recipe.compile else ""]
    return [each for each in said if each]
