"""Guidance stacks the same latents once per prompt, [unconditional, conditional]; here they are told apart again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

WHOLE = ("ip_adapter_masks",)  # of cross_attention_kwargs: for all samples alike, whatever the first size is


def count_branches(sample: torch.Tensor, channels: int) -> int:
    """How often the batch repeats the same latents: 2 under guidance, 3 for InstructPix2Pix, else 1.

    Only the first `channels` are compared: further ones (masks, images) may differ between branches. Reads the device.
    """
    latents = sample[:, :channels]
    for branches in (2, 3):
        if len(latents) % branches == 0:
            first, *others = latents.chunk(branches)
            if all(torch.equal(first, other) for other in others):
                return branches
    return 1


def conditional_half(value: Any, batch: int) -> Any:
    """An argument of a network for the second half of its batch: tensors of that length, in lists and dicts too."""
    if isinstance(value, torch.Tensor):
        return value[batch // 2 :] if value.ndim and len(value) == batch else value
    if isinstance(value, list | tuple):
        return type(value)([conditional_half(each, batch) for each in value])
    if isinstance(value, Mapping):
        return {key: each if key in WHOLE else conditional_half(each, batch) for key, each in value.items()}
    return value
