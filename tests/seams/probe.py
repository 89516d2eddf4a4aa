"""Probes: each tries what a seam promises on the smallest thing that has it, and fails where the seam is open."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..unets.tiny import BASE

Probe = Callable[..., None]
PROBES: dict[str, Probe] = {}


def probe(*names: str) -> Callable[[Probe], Probe]:
    """Enter a function as the probe of seams; its arguments are fixtures."""

    def enter(function: Probe) -> Probe:
        assert not PROBES.keys() & set(names), "each seam has one probe"
        PROBES.update(dict.fromkeys(names, function))
        return function

    return enter


def tiny_unet(**changes: Any) -> Any:
    """A U-Net with attention at the first of its two levels."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    return UNet2DConditionModel(**{**BASE, **changes}).eval()


def call(model: Any, **more: Any) -> torch.Tensor:
    """Its prediction for a batch of two."""
    return model(torch.ones(2, 4, 8, 8), 5, torch.ones(2, 3, 8), **more).sample
