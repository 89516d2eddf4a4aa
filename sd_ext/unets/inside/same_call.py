"""Whether two calls of a U-Net have the same conditions, so that one may reuse what the other computed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from ...seams.diffusers.unets import image_scales
from ...seams.torch import version
from .host import Host

BRANCHES = 8
"""How many calls of one step are remembered. Guidance makes two or three; more are other runs at the same timestep."""

CONDITIONS = (
    *("added_cond_kwargs", "class_labels", "timestep_cond"),
    *("attention_mask", "encoder_attention_mask", "cross_attention_kwargs"),
)
"""Arguments of the U-Net, besides the text, that contain conditions."""


class Noted(NamedTuple):
    """A tensor, and the version number of its content when it was stored (see `seams.torch.version`)."""

    tensor: torch.Tensor
    version: int | None

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Noted:
        """Store a tensor with its present version."""
        return cls(tensor, version(tensor))


def same_tensors(now: list[torch.Tensor], before: list[Noted]) -> bool:
    """Whether tensors have the same content as stored ones.

    A tensor in the same memory that has not been written to since counts as equal without being read. Others are
    compared, which reads from the device.

    Args:
        now: the tensors of this call.
        before: those of an earlier call, in the same order.
    """
    return len(now) == len(before) and all(map(_same, now, before))


def _same(now: torch.Tensor, noted: Noted) -> bool:
    before = noted.tensor
    if version(before) != noted.version:  # written to since, so its former content is unknown
        return False
    if now.shape != before.shape or now.dtype != before.dtype or now.device != before.device:
        return False
    return now.is_meta or _memory(now) == _memory(before) or torch.equal(now, before)


def _memory(tensor: torch.Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.stride()


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested lists and dicts, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from itertools.chain.from_iterable(map(_tensors, value.values()))
    elif isinstance(value, (list, tuple)):
        yield from itertools.chain.from_iterable(map(_tensors, value))


def call_key(unet: Host, kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """Properties that two calls must share, besides sample and conditions, for one to reuse the other's features.

    Args:
        unet: the model.
        kwargs: the arguments of the call after the text.

    Returns:
        Which arguments are given, the scales of LoRA and IP-Adapters, and the active features' `reuse_key`.
    """
    given = tuple(sorted(name for name, value in kwargs.items() if value is not None))
    scale = (kwargs.get("cross_attention_kwargs") or {}).get("scale", 1.0)
    return given, scale, image_scales(unet), unet.reuse_keys()


def whole_key(unet: Host, sample: torch.Tensor, kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """As `call_key`, with the sample's shape, dtype and device."""
    return sample.shape, sample.dtype, sample.device, call_key(unet, kwargs)


def conditions(text: torch.Tensor, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors that a call is conditioned on: the text states and those in `CONDITIONS`, in a fixed order.

    Args:
        text: `encoder_hidden_states`.
        kwargs: the arguments of the call after it.
    """
    return list(_tensors([text, *map(kwargs.get, CONDITIONS)]))
