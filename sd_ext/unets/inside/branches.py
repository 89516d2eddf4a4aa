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


def halves_in(host: Host, sample: torch.Tensor, option: str) -> int | None:
    """In how many branches the batch of the present call is said to be.

    Args:
        host: the model; it has counted the call.
        sample: `(batch, channels, height, width)`.
        option: the option for which it is asked, for messages.

    Returns:
        2 for [unconditional, conditional], else 1; None for batches of other parts, which is said.
    """
    told, call = host.told, host.call
    if not told.sure and call is not None and call.step == 0:
        say_unsure(host, sample)
    if told.guided or len(told.branches) == 1:
        return len(told.branches)
    say(logging.WARNING, f"{option} changes nothing: it knows no batches of {', '.join(told.branches)}")
    return None


def is_guidance(host: Host, sample: torch.Tensor, option: str) -> bool:
    """Whether the batch of the present call is said to be both halves of guidance; if the run has none, it is said.

    Args:
        host, sample, option: as in `halves_in`.
    """
    told, call = host.told, host.call
    if told.apart:
        say(logging.WARNING, f"{option} changes nothing: each half of guidance has a call of its own")
        return False
    if told.sure and len(told.branches) == 1 and told.guidance is not None and told.guidance <= 1:
        say(logging.WARNING, f"{option} changes nothing: it acts on guidance, of which this run has none")
    elif not told.sure and call is not None and call.step == 0:
        say(logging.WARNING, f"{option} changes nothing: nobody has said that the network is called with guidance")
    return halves_in(host, sample, option) == 2


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
    return _rows(value, batch, slice(batch // 2, None))


def unconditional_half(value: Any, batch: int) -> Any:
    """Reduce an argument of the network to the first half of the batch; see `conditional_half`."""
    return _rows(value, batch, slice(None, batch // 2))


def _rows(value: Any, batch: int, rows: slice) -> Any:
    if isinstance(value, torch.Tensor):
        return value[rows] if value.ndim and len(value) == batch else value
    if isinstance(value, list | tuple):
        return type(value)([_rows(each, batch, rows) for each in value])
    if isinstance(value, Mapping):
        return {key: each if key in SHARED else _rows(each, batch, rows) for key, each in value.items()}
    return value


def own_lists(inputs: dict[str, Any]) -> dict[str, Any]:
    """The same arguments with all lists copied, for one call: Diffusers removes items from the lists that it gets."""
    return {key: list(value) if isinstance(value, list) else value for key, value in inputs.items()}
