"""The parts of a batch with guidance: classifier-free guidance calls the network with [unconditional, conditional]."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from .host import Host
from .say import say

SHARED = ("ip_adapter_masks",)
"""Entries of `cross_attention_kwargs` that all samples share: never halved, even if their length is the batch's."""


def say_unsure(host: Host, sample: torch.Tensor) -> None:
    """Say once, if a batch looks like the two halves of guidance, that nobody has said whether it is. Reads the device.

    Args:
        host: the model.
        sample: `(batch, channels, height, width)`.
    """
    one, other = (half[:, : host.config["out_channels"]] for half in sample.tensor_split(2))
    if one.shape == other.shape and torch.equal(one, other):
        say(
            logging.WARNING,
            "a batch of equal halves, of which nobody has said that it is guidance, is taken for separate pictures; "
            "if it is guidance, call the network within sd_ext.sampling(pipe), or sampling(unet, guidance_scale=...)",
        )


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
