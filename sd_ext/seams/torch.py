"""PyTorch's private parts: attributes of modules and storages, fake tensors."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from itertools import chain
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .later import put_off
from .seam import declare, seam

# ---- imports ---------------------------------------------------------------------------------------------------------


@seam(
    "_dynamo",
    seen="torch 2.13, torch._compile; used by torch.optim, diffusers.utils.torch_utils, transformers.masking_utils",
    gone="quick imports",
    fallback="all is imported at once",
)
def put_off_dynamo() -> None:
    """Load the compiler's first part, `torch._dynamo`, when something is compiled.

    Libraries import it for functions that keep it away from their own, and to ask whether a module has been compiled:
    that is answered without it. It takes 66 MB and a third of the time of all imports. Call this before Diffusers,
    transformers or accelerate are imported.
    """

    def leave(function: Any = None, *args: Any, **kwargs: Any) -> Any:
        return function if callable(function) else leave

    never = type("OptimizedModule", (), {})  # of nothing that is not compiled
    put_off(
        "torch._dynamo",
        # Of transformers' masks, and of fake tensors; they need nothing of the rest.
        alone=("torch._dynamo._trace_wrapped_higher_order_op", "torch._dynamo.config"),
        disable=leave,
        allow_in_graph=leave,
        assume_constant_result=leave,
        graph_break=leave,  # of optimizers, outside of any graph
        eval_frame=SimpleNamespace(OptimizedModule=never),
    )


# ---- tensors ---------------------------------------------------------------------------------------------------------


@seam("_version", seen="torch 2.6 to 2.13, torch.Tensor", gone="reuse of features between calls of a U-Net")
def version(tensor: Tensor) -> int | None:
    """A number that changes whenever the tensor is written to; None for tensors of inference mode, which have none."""
    return None if tensor.is_inference() else tensor._version


@seam("_cdata", seen="torch 2.6 to 2.13, torch.UntypedStorage", gone="estimates of a run's memory")
def storage_number(storage: torch.UntypedStorage) -> int:
    """A number that identifies a storage while it exists, also a fake tensor's storage, which has no address."""
    return storage._cdata


@seam(
    "_foreach_lerp_",
    seen="torch 2.6 to 2.13, torch",
    gone="one operation for all averages of weights",
    fallback="one operation for each weight, the same to rounding",
)
def lerp_all(averages: Sequence[Tensor], weights: Sequence[Tensor], share: float) -> None:
    """Move each average towards its weight, in place: average += share * (weight - average).

    Args:
        averages, weights: lists of tensors; the two of a pair have the same shape and dtype.
        share: 0 leaves the averages unchanged, 1 sets them to the weights.
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
    """Whether `group_norm_statistics` works in the installed version."""
    return hasattr(torch, "native_group_norm")


def group_norm_statistics(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> tuple[Tensor, ...]:
    """Group norm that also returns its statistics.

    Args:
        x: `(batch, channels, ...)`.
        weight, bias: `(channels,)`, of the dtype of `x`.
        groups: the number of groups.
        eps: added to the variance.

    Returns:
        The result, of the shape of `x`; the mean, and 1 / standard deviation, of each group, both `(batch, groups)`.
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
    """Context manager: new tensors have a shape, a dtype and a device, but no data."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode()


@seam(
    "TorchDispatchMode",
    "_python_dispatch",
    seen="torch 2.6 to 2.13, torch.utils._python_dispatch",
    gone="estimates of a run's memory",
)
def watching(see: Callable[[Tensor], None]) -> AbstractContextManager[Any]:
    """Context manager: `see` is called with every tensor that an operation returns, also in the backward pass."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            for tensor in _tensors_in(made):
                see(tensor)
            return made

    return Watch()


def _tensors_in(made: Any) -> Iterable[Tensor]:
    """Yield the tensors in the result of an operation: a tensor, or nested tuples or lists of tensors."""
    if isinstance(made, Tensor):
        yield made
    elif isinstance(made, tuple | list):
        yield from chain.from_iterable(map(_tensors_in, made))


# ---- modules ---------------------------------------------------------------------------------------------------------


@seam("_compiled_call_impl", seen="torch 2.6 to 2.13, torch.nn.Module", gone="guidance intervals")
def is_compiled_in_place(module: nn.Module) -> bool:
    """Whether `module.compile()` has been called, after which calls ignore the module's hooks."""
    return module._compiled_call_impl is not None


@seam("_orig_mod", seen="torch 2.6 to 2.13, torch._dynamo.eval_frame", gone="the model inside `torch.compile(model)`")
def uncompiled(model: Any) -> Any:
    """The model inside `torch.compile(model)`; any other model is returned unchanged."""
    return getattr(model, "_orig_mod", model)


def uncompiled_path(path: str) -> str:
    """Convert a module's path in `torch.compile(model)` to its path in `model`."""
    return path.removeprefix("_orig_mod.")


@seam("_compiled_call_impl", seen="torch 2.6 to 2.13, torch.nn.Module", gone="copies of a U-Net that share its weights")
def structure(module: nn.Module, without: Iterable[str] = ()) -> dict[str, Any]:
    """The attributes for a copy of a module that shares all parameters and buffers with it, at every depth.

    Functions compiled in place are not copied, since they are bound to the original modules.

    Args:
        module: the module, which is not changed.
        without: names of attributes to leave out.

    Returns:
        The copy's `__dict__`.
    """
    memo: dict[int, Any] = {id(t): t for t in chain(module.parameters(), module.buffers())}
    compiled = (part._compiled_call_impl for part in module.modules())
    memo.update({id(call): None for call in compiled if call is not None})
    # Most attributes of a module are empty dictionaries for hooks; deepcopy of each would take most of the time.
    places = (value for part in module.modules() for value in vars(part).values())
    memo.update({id(v): type(v)() for v in places if type(v) in (dict, OrderedDict) and not v})
    left_out = {"_compiled_call_impl", *without}
    return copy.deepcopy({name: value for name, value in vars(module).items() if name not in left_out}, memo)


@seam(
    "_forward_hooks",
    "_forward_pre_hooks",
    seen="torch 2.6 to 2.13, torch.nn.Module",
    gone="copies of a U-Net that share its weights",
)
def drop_hooks(module: nn.Module, kind: type) -> None:
    """Remove the forward hooks that are objects of a class from a module, not from those in it."""
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        hooks: dict[int, Any] = getattr(module, name)
        for key in [key for key, hook in hooks.items() if isinstance(hook, kind)]:
            for listed in (name, f"{name}_with_kwargs", f"{name}_always_called"):
                getattr(module, listed, {}).pop(key, None)


@seam("_modules", "_compiled_call_impl", seen="torch 2.6 to 2.13, torch.nn.Module", gone="reuse of a U-Net's features")
def replica(
    module: Any, children: Mapping[str, Any], cls: type | None = None, attributes: Mapping[str, Any] | None = None
) -> Any:
    """A shallow copy of a module with some children replaced; everything else is shared, hooks included.

    Args:
        module: the module, which is not changed.
        children: the new children by name; None for a child that shall be missing.
        cls: the copy's class; None means the module's.
        attributes: attributes of the copy that differ; they hide children of the same name.
    """
    other: Any = object.__new__(cls or type(module))
    vars(other).update(vars(module))
    vars(other).update(attributes or {})
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
    """Context manager: within the block, the attribute `name` of all modules is `value`.

    It works for plain attributes and for registered children. A child stays registered, so that the names of weights do
    not change.

    Args:
        modules: the modules.
        name: the attribute.
        value: its temporary value.
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
