"""accelerate's private parts: its wrappers and hooks around models and optimizers."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from .seam import declare, seam

if TYPE_CHECKING:
    import torch

F = TypeVar("F", bound=Callable[..., Any])


@seam(
    "AcceleratedOptimizer",
    "optimizer",
    seen="accelerate 1.10 to 1.15, accelerate.optimizer",
    gone="training",
)
def inner_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer inside accelerate's wrapper, or itself."""
    from accelerate.optimizer import AcceleratedOptimizer

    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


@seam(
    "_hf_hook",
    seen="accelerate 1.10 to 1.15, accelerate.hooks.add_hook_to_module",
    gone="refusing to share the weights of an offloaded model",
    fallback="none: such a model is taken for one that is not offloaded",
)
def is_hooked(module: torch.nn.Module) -> bool:
    """Whether accelerate moves this module's weights to the device and back around its calls."""
    return hasattr(module, "_hf_hook")


declare(
    f"{__name__}.runs_its_own_forward",
    "__wrapped__",
    seen="accelerate 1.10 to 1.15, utils.other.extract_model_from_parallel",
    gone="taking a U-Net out of accelerate's wrappers",
    fallback="none: a model that accelerate has put back by hand is refused",
)


def runs_its_own_forward(module: torch.nn.Module) -> bool:
    """Whether `forward` is the class's own, also where accelerate's `unwrap_model` has put it back.

    It does so by following `__wrapped__`, past its own wrappers and past the decorators of the class's `forward`.
    """
    own: Any = type(module).forward
    found = getattr(module.forward, "__func__", None)
    while own is not found and hasattr(own, "__wrapped__"):
        own = own.__wrapped__
    return own is found


def stands_for(original: Callable[..., Any]) -> Callable[[F], F]:
    """`functools.wraps(original)` for a `forward` that accelerate's `unwrap_model` shall not look behind.

    The function has the name, documentation and signature of the original, and no `__wrapped__`: accelerate follows
    that to take its own wrappers off, and would take this function off too.
    """

    def decorate(function: F) -> F:
        wrapped: Any = functools.wraps(original)(function)
        wrapped.__signature__ = inspect.signature(original)
        del wrapped.__wrapped__
        return wrapped

    return decorate
