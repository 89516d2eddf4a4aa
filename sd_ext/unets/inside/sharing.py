"""Copies of a model's structure around the same weights."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import InputError
from ...seams.accelerate import is_hooked, runs_its_own_forward
from ...seams.diffusers.unets import is_offloaded_in_groups
from ...seams.torch import structure


def share(module: torch.nn.Module) -> dict[str, Any]:
    """The attributes of a copy of the module whose parameters and buffers are the module's own, at every depth.

    Args:
        module: any; it is left as it is.

    Raises:
        InputError: the module is offloaded: hooks that move weights would move them for one of the two only. Or its
            `forward` has been replaced, by accelerate's `prepare` for one: the copy would run that.
    """
    refuse_offloaded(module)
    if not runs_its_own_forward(module):
        raise InputError(
            "this U-Net's forward has been replaced; take it before, or undo that: what accelerate has prepared, by "
            "unwrap_model(unet, keep_fp32_wrapper=False)"
        )
    return structure(module, without=("forward", "_compiled"))


def refuse_offloaded(module: torch.nn.Module) -> None:
    """Raise `InputError` where weights of the module are moved to the device and back around its calls."""
    if any(is_hooked(part) or is_offloaded_in_groups(part) for part in module.modules()):
        raise InputError("this U-Net is offloaded; take it before enabling offloading, or remove the hooks first")
