"""The branches of guidance: a batch that holds the same latents once for each prompt, taken apart again.

Classifier-free guidance calls the network with `[unconditional, conditional]` in one batch, InstructPix2Pix with three.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

SHARED = ("ip_adapter_masks",)
"""Entries of `cross_attention_kwargs` that all samples share: never halved, even if their length is the batch's."""


def count_branches(sample: torch.Tensor, channels: int) -> int:
    """How often a batch repeats the same latents. Reads the device.

    Args:
        sample: `(batch, channels or more, height, width)`.
        channels: how many are compared; further ones (masks, images) may differ between branches.

    Returns:
        2 under guidance, 3 for InstructPix2Pix, else 1.
    """
    latents = sample[:, :channels]
    for branches in (2, 3):
        if len(latents) % branches == 0:
            first, *others = latents.chunk(branches)
            if all(torch.equal(first, other) for other in others):
                return branches
    return 1


def conditional_half(value: Any, batch: int) -> Any:
    """An argument of a network for the conditional half of its batch, which is the second.

    Args:
        value: a tensor, or lists, tuples and dictionaries of such; tensors whose first size is `batch` are halved,
            save those under the names of `SHARED`, and all else stays as it is.
        batch: samples of the whole batch.
    """
    if isinstance(value, torch.Tensor):
        return value[batch // 2 :] if value.ndim and len(value) == batch else value
    if isinstance(value, list | tuple):
        return type(value)([conditional_half(each, batch) for each in value])
    if isinstance(value, Mapping):
        return {key: each if key in SHARED else conditional_half(each, batch) for key, each in value.items()}
    return value
