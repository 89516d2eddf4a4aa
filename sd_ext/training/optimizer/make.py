"""Builds an optimizer from its name, its options, and groups of parameters with their own learning rates."""

from __future__ import annotations

import importlib
import inspect
import logging
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sd_ext.errors import InputError, TrainingError, UnknownNameError
from sd_ext.training.optimizer.names import PRESETS, preset

if TYPE_CHECKING:
    import torch
    from torch import nn
from sd_ext.training.optimizer.averaged import to_training

log = logging.getLogger(__name__)

LORA_UP = ("lora_B", "lora_up")
"""The matrices of a LoRA that start at zero, in the names of peft and kohya."""


def find_class(name: str) -> type[torch.optim.Optimizer]:
    """Import the class of an optimizer.

    Args:
        name: a name in `PRESETS`, or a class path such as "package.module.Class".

    Raises:
        UnknownNameError: the name is neither.
        InputError: its package is not installed (says how to install it), or it is no optimizer that the loop can use.
    """
    import torch

    known = preset(name)
    module, _, attribute = known.path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # importing a package runs its code, which may raise anything
        missing = f"optimizer {name!r} needs {module!r}, which cannot be imported ({error!r})"
        raise InputError(f"{missing}: pip install {known.package}" if known.package else missing) from error
    if not (isinstance(found, type) and issubclass(found, torch.optim.Optimizer)):
        raise InputError(f"optimizer {name!r}: {known.path} is not a class derived from torch.optim.Optimizer")
    closure = inspect.signature(found.step).parameters.get("closure")
    if closure and closure.default is closure.empty:
        raise InputError(f"optimizer {name!r} evaluates the loss several times a step, which this loop does not do")
    return found


def make_optimizer(
    name: str, groups: list[dict[str, Any]], learning_rate: float, options: Mapping[str, Any] | None = None
) -> torch.optim.Optimizer:
    """Build an optimizer. The learning rate of each group is `learning_rate` times its "ratio".

    Args:
        name: a name in `PRESETS`, or a class path.
        groups: from `parameter_groups`; each has "params", "ratio" and "weight_decay".
        learning_rate: the learning rate of a group with ratio 1.
        options: keyword arguments of the class's constructor, such as `{"betas": [0.9, 0.99]}`; they override those
            of the preset.

    Raises:
        InputError: the optimizer is not installed, does not accept the options, or keeps state that a checkpoint
            cannot hold.
    """
    known, cls = preset(name), find_class(name)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in (options or {}).items()}
    _check_options(name, cls, given, groups)
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate is {learning_rate}; it must be a number more than 0")
    if known.one_rate and len({group["ratio"] for group in groups}) > 1:
        raise InputError(f"{name} has one learning rate for all parameters: leave out LoRA+ and other ratios")
    packed = [{**group, "lr": learning_rate * group["ratio"]} for group in groups]
    try:
        optimizer = cls(packed, lr=learning_rate, **{**known.options, **given})  # type: ignore[call-arg]
    except (TypeError, ValueError, AssertionError, RuntimeError, ImportError) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in given.items()) or "none"
        raise InputError(f"optimizer {name!r} refuses its options ({shown}): {error or 'out of range'}") from error
    _check_state(name, optimizer)
    return optimizer


def _check_options(name: str, cls: type, options: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    """Refuse options that the constructor does not have, or that have a setting of their own in the run."""
    taken = inspect.signature(cls).parameters
    for ours, setting in {"params": "its parameters", "lr": "learning_rate", "weight_decay": "weight_decay"}.items():
        if ours in options:
            raise InputError(f"optimizer option {ours!r}: use the run's own setting for {setting} instead")
    open_ended = any(p.kind is p.VAR_KEYWORD for p in taken.values())
    for key in options:
        if key not in taken and not open_ended:
            raise UnknownNameError(f"option of optimizer {name!r}:", key, set(taken) - {"params", "lr", "weight_decay"})
    if "lr" not in taken and not open_ended:
        raise InputError(f"optimizer {name!r} takes no learning rate 'lr'; its schedule could not be followed")
    if "weight_decay" not in taken and not open_ended and any(group["weight_decay"] for group in groups):
        log.warning("optimizer %r has no weight decay; the setting weight_decay is not used", name)


def _check_state(name: str, optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer whose state a checkpoint cannot hold, before training starts.

    For optimizers without a preset, a copy takes one step on a trial parameter, and its state is packed.
    """
    import torch

    from sd_ext.training.optimizer.state import optimizer_state

    more = set(optimizer.state_dict()) - {"state", "param_groups"}
    if more:
        raise InputError(f"optimizer {name!r} also keeps {', '.join(sorted(more))}: the run could not be resumed")
    if name in PRESETS:
        return
    trial = torch.nn.Parameter(torch.ones(64, 64))
    trial.grad = torch.ones_like(trial)
    settings = {key: value for key, value in optimizer.param_groups[0].items() if key != "params"}
    try:
        copy = type(optimizer)([{"params": [trial], **settings}], lr=settings["lr"])  # type: ignore[call-arg]
        to_training(copy)
        copy.step()
    except Exception:  # it may work on a GPU only; then the first checkpoint raises the error
        return
    try:
        optimizer_state(copy, {trial: "weight"})
    except TrainingError as error:
        raise InputError(f"optimizer {name!r}: {error}") from error


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, ratios: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Sort trained parameters into groups by weight decay and learning rate.

    Matrices and convolution kernels get weight decay; biases, norms and other vectors do not.

    Args:
        named: (name, parameter) pairs, as from `module.named_parameters()`; frozen parameters are left out.
        weight_decay: weight decay of matrices and kernels.
        ratios: part of a parameter name, between dots -> factor of the learning rate of these parameters. For example
            `{"text_encoder": 0.5}`, or `dict.fromkeys(LORA_UP, 16.0)` for LoRA+ (Hayou et al. 2024, arXiv
            2402.12354). If several keys match a name, their factors are multiplied.

    Returns:
        Groups with "params", "weight_decay" and "ratio"; the loop sets `group["lr"] = rate * group["ratio"]`.

    Raises:
        InputError: no parameter is trained, or a ratio is not positive.
    """
    ratios = ratios or {}
    for key, ratio in ratios.items():
        if not (math.isfinite(ratio) and ratio > 0):
            raise InputError(f"the learning rate of {key!r} is {ratio} times the run's; it must be more than 0 times")
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    seen: set[int] = set()
    for name, parameter in named:
        if not parameter.requires_grad or id(parameter) in seen:
            continue
        seen.add(id(parameter))
        ratio = math.prod(value for key, value in ratios.items() if f".{key.strip('.')}." in f".{name}.")
        decays = parameter.ndim > 1
        group = {"params": [], "weight_decay": weight_decay if decays else 0.0, "ratio": float(ratio)}
        groups.setdefault((decays, ratio), group)["params"].append(parameter)
    if not groups:
        raise InputError("no parameter is trained: all are frozen")
    return list(groups.values())
