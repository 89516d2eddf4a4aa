"""The branches of guidance: a batch that contains the same latents once for each prompt.

Classifier-free guidance calls the network with `[unconditional, conditional]` in one batch, InstructPix2Pix with three
branches.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

SHARED = ("ip_adapter_masks",)
"""Entries of `cross_attention_kwargs` that all samples share: never halved, even if their length is the batch's."""


def count_branches(sample: torch.Tensor, channels: int) -> int:
    """Find how often a batch repeats the same latents. Reads from the device.

    Args:
        sample: `(batch, channels or more, height, width)`.
        channels: how many channels are compared; further ones (masks, images) may differ between branches.

    Returns:
        2 with guidance, 3 for InstructPix2Pix, else 1.
    """
    latents = sample[:, :channels]
    for branches in (2, 3):
        if len(latents) % branches == 0:
            first, *others = latents.chunk(branches)
            if all(torch.equal(first, other) for other in others):
                return branches
    return 1


def conditional_half(value: Any, batch: int) -> Any:
    """Reduce an argument of the network to the conditional half of the batch, which is the second half.

    Args:
        value: a tensor, or nested lists, tuples and dictionaries. Tensors whose first size is `batch` are halved,
            except those under the names in `SHARED`; everything else is kept.
        batch: the size of the whole batch.
    """
    if isinstance(value, torch.Tensor):
        return value[batch // 2 :] if value.ndim and len(value) == batch else value
    if isinstance(value, list | tuple):
        return type(value)([conditional_half(each, batch) for each in value])
    if isinstance(value, Mapping):
        return {key: each if key in SHARED else conditional_half(each, batch) for key, each in value.items()}
    return value
