"""Copies of a model that share its weights."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import InputError
from ...seams.accelerate import is_hooked, runs_its_own_forward
from ...seams.diffusers.unets import is_offloaded_in_groups
from ...seams.torch import drop_hooks, structure
from .hooks import Hook


def share(module: torch.nn.Module, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """The attributes for a copy of a module that shares all parameters and buffers with it, at every depth.

    Args:
        module: the module, which is not changed, not even for a moment: other threads may be running it.
        without: further attributes that are not copied.

    Returns:
        The copy's `__dict__`, without the hooks of features.

    Raises:
        InputError: the module is offloaded, and its hooks would move the weights for only one of the two; or its
            `forward` has been replaced, for instance by accelerate's `prepare`, which the copy would run too.
    """
    refuse_offloaded(module)
    if not runs_its_own_forward(module):
        raise InputError(
            "this U-Net's forward has been replaced; take it before, or undo that: what accelerate has prepared, by "
            "unwrap_model(unet, keep_fp32_wrapper=False)"
        )
    copied = structure(module, without=("forward", "_compiled", *without))
    without_features(copied["_modules"].values())
    return copied


def without_features(modules: Any) -> None:
    """Remove features' hooks from modules and all in them."""
    for part in modules:
        for module in part.modules() if part is not None else ():
            drop_hooks(module, Hook)


def refuse_offloaded(module: torch.nn.Module) -> None:
    """Raise `InputError` if the module is offloaded: weights move to the device before its calls and back after."""
    if any(is_hooked(part) or is_offloaded_in_groups(part) for part in module.modules()):
        raise InputError("this U-Net is offloaded; take it before enabling offloading, or remove the hooks first")
