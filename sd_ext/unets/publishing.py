"""Pipelines with a U-Net of this package, saved so that they load where this package is missing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel

from .. import whole
from ..errors import InputError
from ..reading import read_json
from ..seams.diffusers.records import is_ours
from ..seams.torch import uncompiled
from .variant import OPTIONS, VariantUNet2DConditionModel

PLAIN = UNet2DConditionModel.__name__


def publishable(pipe: Any, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Save a pipeline so that it loads without sd_ext, with the plain U-Net.

    The options that are on stay in the U-Net's config, where Diffusers ignores them and says so. With sd_ext,
    `VariantUNet2DConditionModel.from_pretrained(folder, subfolder="unet")` has them again.

    Args:
        pipe: a pipeline whose U-Net is of this package.
        folder: where to; it must not exist, or be empty.
        overwrite: replace what is there.

    Returns:
        The folder.

    Raises:
        InputError: the U-Net is none of ours, has adapters that are not fused, or another part is of this package.
    """
    unet = uncompiled(getattr(pipe, "unet", None))
    name = type(pipe).__name__
    if not isinstance(unet, VariantUNet2DConditionModel):
        found = "no U-Net" if unet is None else f"a {type(unet).__name__}"
        raise InputError(f"publishable: {name} has {found}, none of this package; its save_pretrained is enough")
    if getattr(unet, "peft_config", None):
        raise InputError(
            "publishable: the U-Net has LoRA adapters; call pipe.unload_lora_weights(), after fuse_lora() to keep them"
        )
    for part, module in pipe.components.items():
        if part != "unet" and is_ours(type(module)):
            raise InputError(
                f"publishable: the {part} is sd_ext's {type(module).__name__}, which would not load elsewhere; put one "
                "of Diffusers' in its place (docs/plugins.md exports samplers)"
            )
    with whole.folder(folder, overwrite) as new:
        pipe.save_pretrained(new, safe_serialization=True)
        _change(new / "model_index.json", {}, unet=["diffusers", PLAIN])
        _change(new / "unet" / "config.json", OPTIONS, _class_name=PLAIN)
    return Path(folder)


def _change(path: Path, neutral: Mapping[str, Any], **entries: Any) -> None:
    """Set entries of a JSON file, and leave out those that have a neutral value."""
    found = read_json(path, dict[str, Any], finite=False)
    kept = {name: value for name, value in found.items() if name not in neutral or value != neutral[name]}
    whole.write_json(path, {**kept, **entries}, indent=2)
