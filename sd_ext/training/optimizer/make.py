"""An optimizer from its name, its options, and groups of parameters with their own learning rates."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sd_ext.errors import InputError, TrainingError, UnknownNameError
from sd_ext.training.optimizer.names import PRESETS, preset

if TYPE_CHECKING:
    import torch
    from torch import nn
from sd_ext.training.optimizer.averaged import to_training

LORA_UP = ("lora_B", "lora_up")
"""The matrices of a LoRA that start at zero, in the names of peft and kohya."""


def find_class(name: str) -> type[torch.optim.Optimizer]:
    """The class of an optimizer.

    Raises:
        InputError: its package is not installed (with the command that does it), or it is no optimizer we can use.
    """
    import torch

    known = preset(name)
    module, _, attribute = known.path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # importing runs whatever is in the package
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
    """An optimizer over groups from `parameter_groups`, each group's "lr" at `learning_rate` x its "ratio".

    Args:
        name: of `PRESETS`, or a class path.
        groups: each with "params", "ratio" and "weight_decay".
        learning_rate: of a group with ratio 1.
        options: of the class's constructor, such as `{"betas": [0.9, 0.99]}`; they go before the preset's.

    Raises:
        InputError: the optimizer is not installed, or refuses its options; names them.
    """
    known, cls = preset(name), find_class(name)
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in (options or {}).items()}
    _check_options(name, cls, given, groups)
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning_rate is {learning_rate}; it must be a number more than 0")
    if known.one_rate and len({group["ratio"] for group in groups}) > 1:
        raise InputError(f"{name} finds one learning rate for all parameters: leave out LoRA+ and other ratios")
    packed = [{**group, "lr": learning_rate * group["ratio"]} for group in groups]
    try:
        optimizer = cls(packed, lr=learning_rate, **{**known.options, **given})  # type: ignore[call-arg]
    except (TypeError, ValueError, AssertionError, RuntimeError, ImportError) as error:
        shown = ", ".join(f"{key}={value!r}" for key, value in given.items()) or "none"
        raise InputError(f"optimizer {name!r} refuses its options ({shown}): {error or 'out of range'}") from error
    _check_state(name, optimizer)
    return optimizer


def _check_options(name: str, cls: type, options: dict[str, Any], groups: list[dict[str, Any]]) -> None:
    """Every option must be one of the constructor's, and none one that the run's settings set."""
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
        raise InputError(f"optimizer {name!r} has no weight decay: set weight_decay to 0")


def _check_state(name: str, optimizer: torch.optim.Optimizer) -> None:
    """Refuse now what no checkpoint could hold later, by a step of the same class on a parameter of no consequence."""
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
    except Exception:  # it may work on a GPU only; then the first checkpoint tells
        return
    try:
        optimizer_state(copy, {trial: "weight"})
    except TrainingError as error:
        raise InputError(f"optimizer {name!r}: {error}") from error


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, ratios: Mapping[str, float] | None = None
) -> list[dict[str, Any]]:
    """Groups with weight decay for matrices and kernels, none for biases, norms and other vectors.

    Each group keeps its "ratio": the schedule sets `group["lr"] = rate * group["ratio"]`.

    Args:
        named: (name, parameter), as `module.named_parameters()` gives them; frozen ones are left out.
        weight_decay: of matrices.
        ratios: learning rates relative to the run's, for all parameters whose name has the key as one whole part or
            several between dots: `{"text_encoder": 0.5}`, or LoRA+ (Hayou et al. 2024, arXiv 2402.12354), which is
            `dict.fromkeys(LORA_UP, 16.0)`. Where several fit they multiply.

    Raises:
        InputError: nothing is trained, or a ratio is not positive.
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
