"""`--unet NAME` and `--unet-option NAME=VALUE`: which options of the U-Net a recipe asks for, and giving it them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args, get_origin

from ..declared import check
from ..errors import InputError, UnknownNameError
from ..reading import parse_json
from .checks import split_option
from .request import Recipe

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def wanted_options(recipe: Recipe) -> dict[str, Any] | None:
    """The options that a recipe asks for, by name and typed; None if it asks for none.

    A preset stands for all options; single ones alone leave the others as the model has them.

    Raises:
        InputError: an unknown preset or option, or a value of another type.
    """
    if recipe.unet is None and not recipe.unet_option:
        return None
    from ..unets.presets import preset_options

    return {**(preset_options(recipe.unet) if recipe.unet else {}), **single_options(recipe)}


def single_options(recipe: Recipe) -> dict[str, Any]:
    """The options of --unet-option. For errors see `wanted_options`."""
    from ..unets.variant import DECLARED, OPTIONS

    values: dict[str, Any] = {}
    for text in recipe.unet_option:
        name, value = split_option(text)
        if name not in OPTIONS:
            raise UnknownNameError("option of the U-Net", name, OPTIONS)
        values[name] = typed(value, DECLARED[name].kind)
        check(values[name], DECLARED[name].kind, "--unet-option", name)
    return values


def typed(text: str, kind: Any) -> Any:
    """A value as JSON reads it: 3, true, "auto", [1, 2]; also `none`, a bare word, and `a,b` for a list.

    Args:
        text: as given.
        kind: the declared type; what does not fit it is left to `check`.
    """
    if kind is str:
        return text
    if text.lower() in ("none", "null"):
        return None
    lists = [each for each in (kind, *get_args(kind)) if get_origin(each) in (list, tuple)]
    if lists and not text.startswith("[") and ("," in text or kind in lists):
        return [_plain(item) for item in text.split(",")]
    return _plain(text)


def _plain(text: str) -> Any:
    try:
        return parse_json(text.lower() if text.lower() in ("true", "false") else text, "--unet-option")
    except InputError:
        return text.strip()


def set_unet(pipe: DiffusionPipeline, recipe: Recipe) -> None:
    """Give the pipeline's U-Net the options of a recipe, if it asks for any.

    Raises `InputError` if there is no U-Net or it cannot have them.
    """
    options = wanted_options(recipe)
    if options is None:
        return
    from diffusers import UNet2DConditionModel

    from ..unets.variant import VariantUNet2DConditionModel

    asked = f"--unet {recipe.unet}" if recipe.unet else f"--unet-option {recipe.unet_option[0]}"
    network: Any = getattr(pipe, "unet", None)
    if not isinstance(network, UNet2DConditionModel):
        found = "has no U-Net" if network is None else f"has a {type(network).__name__}, whose options these are not"
        raise InputError(f"{asked}: {type(pipe).__name__} {found}; leave it out")
    if recipe.unet == "exact" and not recipe.unet_option and not isinstance(network, VariantUNet2DConditionModel):
        return
    pipe.register_modules(unet=VariantUNet2DConditionModel.from_unet(network, **options))
