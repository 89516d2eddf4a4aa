"""PyTorch's private parts: modules' insides, storages, fake tensors."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from .seam import declare, seam

# ---- tensors ---------------------------------------------------------------------------------------------------------


@seam("_version", seen="torch 2.6 to 2.13, torch.Tensor", gone="reuse of features between calls of a U-Net")
def version(tensor: Tensor) -> int | None:
    """A number that changes when the tensor is written to; None in inference mode, where none is kept."""
    return None if tensor.is_inference() else tensor._version


@seam("_cdata", seen="torch 2.6 to 2.13, torch.UntypedStorage", gone="estimates of a run's memory")
def storage_number(storage: torch.UntypedStorage) -> int:
    """A number no other living storage has. Storages of fake tensors have it too, though no address."""
    return storage._cdata


@seam(
    "_foreach_lerp_",
    seen="torch 2.6 to 2.13, torch",
    gone="one operation for all averages of weights",
    fallback="one operation for each weight, the same to rounding",
)
def lerp_all(averages: Sequence[Tensor], weights: Sequence[Tensor], share: float) -> None:
    """Move each average towards its weight by a share of the distance, in place.

    Args:
        averages, weights: pairs of one shape and dtype.
        share: 0 leaves the averages, 1 makes them the weights.
    """
    together = getattr(torch, "_foreach_lerp_", None)
    if together is not None:
        together(averages, weights, share)
        return
    for average, weight in zip(averages, weights, strict=True):
        average.lerp_(weight, share)


@seam(
    "native_group_norm",
    seen="torch 2.6 to 2.13, torch, not in its documentation",
    gone="group norm with a quick backward pass on a CPU",
    fallback="PyTorch's own group norm",
)
def has_group_norm_statistics() -> bool:
    """Whether `group_norm_statistics` works here."""
    return hasattr(torch, "native_group_norm")


def group_norm_statistics(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, ...]:
    """A group norm, with the mean and 1 / standard deviation of each group.

    Args:
        x: `(batch, channels, ...)`.
        weight, bias: `(channels,)`, of the dtype of `x`.

    Returns:
        y as `x`, and both statistics `(batch, groups)`.
    """
    return torch.native_group_norm(x, weight, bias, x.shape[0], x.shape[1], x[0, 0].numel(), groups, eps)


# ---- tensors without numbers -----------------------------------------------------------------------------------------


@seam(
    "FakeTensorMode",
    "_subclasses",
    seen="torch 2.6 to 2.13, torch._subclasses.fake_tensor",
    gone="estimates of a run's memory",
)
def fake_tensors() -> AbstractContextManager[Any]:
    """Within, new tensors have a shape, a dtype and a device, and no numbers."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


@seam(
    "TorchDispatchMode",
    "_python_dispatch",
    seen="torch 2.6 to 2.13, torch.utils._python_dispatch",
    gone="estimates of a run's memory",
)
def watching(see: Callable[[Tensor], None]) -> AbstractContextManager[Any]:
    """Within, `see` is called with every tensor that an operation gives, those of the backward pass too."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            for tensor in _tensors_in(made):
                see(tensor)
            return made

    return Watch()


def _tensors_in(made: Any) -> Iterable[Tensor]:
    """What an operation gives is a tensor, or a tuple or list of them."""
    if isinstance(made, Tensor):
        yield made
    elif isinstance(made, tuple | list):
        yield from chain.from_iterable(map(_tensors_in, made))


# ---- modules ---------------------------------------------------------------------------------------------------------


@seam("_compiled_call_impl", seen="torch 2.6 to 2.13, torch.nn.Module", gone="guidance intervals")
def is_compiled_in_place(module: nn.Module) -> bool:
    """Whether `module.compile()` has been called, after which calls no longer look at the module's hooks."""
    return module._compiled_call_impl is not None


@seam("_orig_mod", seen="torch 2.6 to 2.13, torch._dynamo.eval_frame", gone="the model inside `torch.compile(model)`")
def uncompiled(model: Any) -> Any:
    """The model inside `torch.compile(model)`, or the model itself."""
    return getattr(model, "_orig_mod", model)


def uncompiled_path(path: str) -> str:
    """A module's dotted path in the model inside `torch.compile(model)`, from that in the compiled one."""
    return path.removeprefix("_orig_mod.")


@seam("_compiled_call_impl", seen="torch 2.6 to 2.13, torch.nn.Module", gone="copies of a U-Net that share its weights")
def structure(module: nn.Module, without: Iterable[str] = ()) -> dict[str, Any]:
    """The attributes of a copy of the module whose parameters and buffers are the module's own, at every depth.

    What was compiled in place is left out: it is bound to the modules it was compiled for.

    Args:
        without: names of attributes to leave out.
    """
    memo: dict[int, Any] = {id(t): t for t in chain(module.parameters(), module.buffers())}
    compiled = (part._compiled_call_impl for part in module.modules())
    memo.update({id(call): None for call in compiled if call is not None})
    # Most of a module is places for hooks that are empty: a general copy of each would take most of the time.
    places = (value for part in module.modules() for value in vars(part).values())
    memo.update({id(v): type(v)() for v in places if type(v) in (dict, OrderedDict) and not v})
    left_out = {"_compiled_call_impl", *without}
    return copy.deepcopy({name: value for name, value in vars(module).items() if name not in left_out}, memo)


@seam("_modules", "_compiled_call_impl", seen="torch 2.6 to 2.13, torch.nn.Module", gone="reuse of a U-Net's features")
def replica(module: Any, children: Mapping[str, Any], cls: type | None = None) -> Any:
    """A copy of the module alone, with some children replaced; parameters, hooks and all else are shared.

    Args:
        children: by name; None stands for a child that is not there.
        cls: class of the copy, by default the module's.
    """
    other: Any = object.__new__(cls or type(module))
    vars(other).update(vars(module))
    vars(other)["_compiled_call_impl"] = None  # what was compiled is bound to the module it was compiled for
    vars(other)["_modules"] = {**module._modules, **children}
    return other


declare(
    f"{__name__}.shadowed",
    "__dict__",
    seen="torch 2.6 to 2.13: torch.nn.Module finds its registered children after its plain attributes",
    gone="perturbed-attention and smoothed-energy guidance",
)


@contextlib.contextmanager
def shadowed(modules: Sequence[nn.Module], name: str, value: Any) -> Iterator[None]:
    """Within, the attribute `name` of all modules is `value`, whether it was a plain one or a registered child.

    A child stays registered, so that names of weights do not change.
    """
    before = [vars(module).get(name) for module in modules]
    for module in modules:
        vars(module)[name] = value
    try:
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            if own is None:
                del vars(module)[name]
            else:
                vars(module)[name] = own
