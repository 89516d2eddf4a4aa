"""Copies of a model's structure around the same tensors."""

from __future__ import annotations

import copy
from collections import OrderedDict
from itertools import chain
from typing import Any

import torch

from ...errors import InputError


def share(module: torch.nn.Module) -> dict[str, Any]:
    """The attributes of a copy of the module whose parameters and buffers are the module's own, at every depth.

    Raises:
        InputError: the module is offloaded: hooks that move weights would move them for one of the two only. Or its
            `forward` has been replaced, by accelerate's `prepare` for one: the copy would run that.
    """
    refuse_offloaded(module)
    if not _runs_its_own_forward(module):
        raise InputError(
            "this U-Net's forward has been replaced; take it before, or undo that: what accelerate has prepared, by "
            "unwrap_model(unet, keep_fp32_wrapper=False)"
        )
    memo: dict[int, Any] = {id(t): t for t in chain(module.parameters(), module.buffers())}
    # What was compiled is bound to the modules it was compiled for.
    compiled = {id(c): None for m in module.modules() if (c := m.__dict__.get("_compiled_call_impl")) is not None}
    memo.update(compiled)
    # Most of a module is places for hooks that are empty: a general copy of each would take most of the time.
    empty = [v for m in module.modules() for v in vars(m).values() if type(v) in (dict, OrderedDict) and not v]
    memo.update({id(value): type(value)() for value in empty})
    left_out = ("forward", "_compiled", "_compiled_call_impl")
    attributes = {k: v for k, v in module.__dict__.items() if k not in left_out}
    return copy.deepcopy(attributes, memo)


def _runs_its_own_forward(module: torch.nn.Module) -> bool:
    """Whether it is its class's, also where accelerate has put it back by hand, without its decorators."""
    own: Any = type(module).forward
    found = getattr(module.forward, "__func__", None)
    while own is not found and hasattr(own, "__wrapped__"):
        own = own.__wrapped__
    return own is found


def refuse_offloaded(module: torch.nn.Module) -> None:
    for part in module.modules():
        if hasattr(part, "_hf_hook") or is_offloaded_in_groups(part):
            raise InputError("this U-Net is offloaded; take it before enabling offloading, or remove the hooks first")


def is_offloaded_in_groups(module: torch.nn.Module) -> bool:
    """Whether Diffusers' group offloading hooks this very module."""
    hooks = getattr(module, "_diffusers_hook", None)
    return hooks is not None and hooks.get_hook("group_offloading") is not None
