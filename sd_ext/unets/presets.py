"""Names for sets of options: how much exactness to give for how much speed. Where the cache cuts is the family's.

| name | what it is |
|---|---|
| exact | the plain network |
| balanced | deep features of every second step |
| fast | deep features of every third step |
| cached, highres | the defaults of `CachedUNet2DConditionModel` and `HighResUNet2DConditionModel` |

Merged tokens are none: they gain less than the cache, and on SDXL nothing (benchmarks/results/unet_speed.md).
"""

from __future__ import annotations

from typing import Any

from diffusers import UNet2DConditionModel

from ..errors import InputError, UnknownNameError
from .classes import CachedUNet2DConditionModel, HighResUNet2DConditionModel
from .variant import OPTIONS, VariantUNet2DConditionModel

PRESETS: dict[str, dict[str, Any]] = {
    "exact": {},
    "balanced": {"cache_interval": 2},
    "fast": {"cache_interval": 3},
    "cached": CachedUNet2DConditionModel._defaults,
    "highres": HighResUNet2DConditionModel._defaults,
}


def preset_options(name: str) -> dict[str, Any]:
    """The values of all options under a preset.

    Raises:
        UnknownNameError: there is no such preset.
    """
    check_preset(name)
    return {**OPTIONS, **PRESETS[name]}


def check_preset(name: str) -> None:
    """Raise `UnknownNameError`, which lists the closest names, if there is no such preset."""
    if name not in PRESETS:
        raise UnknownNameError("U-Net preset", name, PRESETS)


def with_preset(unet: UNet2DConditionModel, name: str) -> UNet2DConditionModel:
    """A U-Net with exactly the options of a preset, sharing the weights of `unet`.

    Args:
        unet: a plain or variant U-Net. A plain one with the preset "exact" is returned unchanged.
        name: the preset.

    Raises:
        InputError: an unknown name, a network of another kind, or one that cannot have these options.
    """
    check_preset(name)
    if not isinstance(unet, UNet2DConditionModel):
        raise InputError(f"the preset {name!r} is for a UNet2DConditionModel, not {type(unet).__name__}")
    if name == "exact" and not isinstance(unet, VariantUNet2DConditionModel):
        return unet
    return VariantUNet2DConditionModel.from_unet(unet, **preset_options(name))
