"""Converts an optimizer's state to named tensors and JSON, and back, bit for bit.

Tensors are named `<parameter>|<state>`, tensors inside lists or dictionaries `<parameter>|<state>|<place>`. All other
state is JSON: step counts, and numbers that some optimizers keep in their groups (Prodigy's d and k, schedule-free's
weight_sum and train_mode). Finite floats survive JSON exactly, since Python writes enough digits.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn

from sd_ext.errors import InputError, TrainingError
from sd_ext.seams.accelerate import inner_optimizer

Names = dict[Any, str]  # parameter -> its name in the model


def optimizer_state(optimizer: torch.optim.Optimizer, names: Names) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The complete state of an optimizer, without the weights.

    Args:
        optimizer: an optimizer, or accelerate's wrapper of one.
        names: the names of all its parameters.

    Returns:
        (tensors by name, everything else as JSON values).

    Raises:
        TrainingError: the state holds something that is neither a plain tensor nor a number, text, list or dictionary.
    """
    optimizer, tensors, states = inner_optimizer(optimizer), {}, {}
    for parameter, state in optimizer.state.items():
        if parameter not in names:
            raise TrainingError(f"{_kind(optimizer)} keeps state of what is not among the trained parameters")
        packed = {key: _pack(value, f"{names[parameter]}|{key}", tensors) for key, value in state.items()}
        states[names[parameter]] = {k: v for k, v in packed.items() if not isinstance(state[k], Tensor)}
    groups = []
    for number, group in enumerate(optimizer.param_groups):
        rest = {k: _pack(v, f"|group {number}|{k}", tensors) for k, v in group.items() if k != "params"}
        groups.append({"params": [names[p] for p in group["params"]], **rest})
    return tensors, {"class": _kind(optimizer), "state": {n: s for n, s in states.items() if s}, "groups": groups}


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    names: Names,
    tensors: dict[str, Tensor],
    scalars: dict[str, Any],
    own_settings: bool = False,
) -> None:
    """Load a state from `optimizer_state` into an optimizer. If it does not fit, nothing is changed.

    State tensors of a parameter's shape get the parameter's memory layout (such as channels_last): fused AdamW treats
    both as flat arrays, so with different layouts it would apply moments to the wrong weights. Unlike
    `Optimizer.load_state_dict`, this keeps every dtype: float32 state of bfloat16 weights stays float32.

    Args:
        optimizer: an optimizer, or accelerate's wrapper of one; changed in place.
        names: the names of all its parameters.
        tensors, scalars: the result of `optimizer_state`.
        own_settings: leave what the optimizer was made with (weight decay, betas, ...) and the groups' ratios as they
            are, and take only what it has learnt.

    Raises:
        InputError: the state is of another optimizer class or of other parameters; says what differs.
    """
    optimizer = inner_optimizer(optimizer)
    parameters = {name: p for p, name in names.items()}
    try:
        _check_same(optimizer, names, scalars)
        states: dict[str, dict[str, Any]] = {
            name: {key: _unpack(value, tensors) for key, value in state.items()}
            for name, state in scalars["state"].items()
        }
        settings = [
            {key: _unpack(v, tensors) for key, v in kept.items() if key != "params"} for kept in scalars["groups"]
        ]
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"the checkpoint's optimizer state is not what a run writes ({error!r})") from error
    for key, value in tensors.items():
        name, _, kind = key.rpartition("|")
        if name in parameters:  # other tensors are inside lists or dictionaries, or belong to a group
            states.setdefault(name, {})[kind] = value
    placed = {}
    for group in optimizer.param_groups:
        on_device = bool(group.get("fused") or group.get("capturable"))
        for p in group["params"]:
            found = states.get(names[p], {})
            placed[p] = {key: _place(value, key, p, on_device) for key, value in found.items()}
    optimizer.state.clear()
    optimizer.state.update({p: state for p, state in placed.items() if state})
    own = {*inspect.signature(type(optimizer)).parameters, "ratio", "until"} if own_settings else set()
    for group, kept in zip(optimizer.param_groups, settings, strict=True):
        group.update({key: value for key, value in kept.items() if key not in own})


def _kind(optimizer: torch.optim.Optimizer) -> str:
    return f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def _check_same(optimizer: torch.optim.Optimizer, names: Names, scalars: dict[str, Any]) -> None:
    if scalars["class"] != _kind(optimizer):
        raise InputError(f"the checkpoint is of optimizer {scalars['class']}, this run's is {_kind(optimizer)}")
    kept = [group["params"] for group in scalars["groups"]]
    here = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
    if kept == here:
        return
    lost, new = (sorted({n for g in a for n in g} - {n for g in b for n in g}) for a, b in ((kept, here), (here, kept)))
    if lost or new:
        raise InputError(f"the checkpoint's optimizer trains other parameters ({differences(lost, new)})")
    raise InputError(
        f"the checkpoint's optimizer has the same parameters in other groups ({[len(g) for g in kept]} of them, "
        f"here {[len(g) for g in here]}): resume with the same weight_decay and learning-rate ratios"
    )


def differences(lost: list[str], new: list[str]) -> str:
    """Describe how a checkpoint's names differ from a model's, for an error message; at most three names of each kind.

    Args:
        lost: names that only the checkpoint has.
        new: names that the checkpoint lacks.
    """

    def some(names: list[str]) -> str:
        return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

    return "; ".join(
        f"{what} {some(found)}" for what, found in (("only the checkpoint has", lost), ("it lacks", new)) if found
    )


def _place(value: Any, key: str, p: nn.Parameter, on_device: bool) -> Any:
    """Put a state value on the device and into the layout that the optimizer expects for parameter `p`.

    PyTorch keeps the tensor "step" on the CPU, except for fused and capturable optimizers (`on_device`).
    """
    if not isinstance(value, Tensor):
        return value
    if key == "step" and not on_device:
        return value.clone()
    if value.shape == p.shape:
        return torch.empty_like(p, dtype=value.dtype).copy_(value)
    return value.to(p.device, copy=True)


def _pack(value: Any, place: str, tensors: dict[str, Tensor]) -> Any:
    """Convert a value to JSON; tensors are put into `tensors` under the name `place`, or a name that starts with it."""
    if isinstance(value, Tensor) and type(value) in (Tensor, nn.Parameter):
        tensors[place] = value
        return {"tensor": place}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if isinstance(value, tuple | list):
        return {type(value).__name__: [_pack(v, f"{place}|{i}", tensors) for i, v in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _pack(v, f"{place}|{key}", tensors) for key, v in value.items()}}
    raise TrainingError(f"the optimizer keeps a {type(value).__name__} ({place}), which no checkpoint can hold")


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Convert a value from `_pack` back; `tensors` holds the tensors by name."""
    if not isinstance(value, dict):
        return value
    [(kind, content)] = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    if kind == "dict":
        return {key: _unpack(v, tensors) for key, v in content.items()}
    items = [_unpack(v, tensors) for v in content]
    return tuple(items) if kind == "tuple" else items
