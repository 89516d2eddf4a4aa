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
"""Arguments that hold conditions, beside the text."""


class Noted(NamedTuple):
    """A tensor, and the version that its content had when it was noted (see `seams.torch.version`)."""

    tensor: torch.Tensor
    version: int | None

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Noted:
        """Note a tensor as it is now."""
        return cls(tensor, version(tensor))


def same_tensors(now: list[torch.Tensor], before: list[Noted]) -> bool:
    """Whether tensors have the same content as noted ones.

    A tensor at the same memory that has not been written to is taken for equal without reading it; others are compared,
    which reads the device.

    Args:
        now: the tensors of this call.
        before: those of an earlier one, in the same order.
    """
    return len(now) == len(before) and all(map(_same, now, before))


def _same(now: torch.Tensor, noted: Noted) -> bool:
    before = noted.tensor
    if version(before) != noted.version:  # written to: its content of then is gone
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
    """What must be equal in two calls beside the sample and the conditions, for one to reuse what the other computed.

    Args:
        unet: the model.
        kwargs: the arguments of the call after the text.

    Returns:
        Which arguments are given, the scales of LoRA and IP-Adapters, and what the active features say.
    """
    given = tuple(sorted(name for name, value in kwargs.items() if value is not None))
    scale = (kwargs.get("cross_attention_kwargs") or {}).get("scale", 1.0)
    return given, scale, image_scales(unet), unet.reuse_keys()


def conditions(text: torch.Tensor, kwargs: dict[str, Any]) -> list[torch.Tensor]:
    """The tensors a call is conditioned on: the text's states and those in `CONDITIONS`, in a fixed order.

    Args:
        text: `encoder_hidden_states`.
        kwargs: the arguments of the call after it.
    """
    return list(_tensors([text, *map(kwargs.get, CONDITIONS)]))
