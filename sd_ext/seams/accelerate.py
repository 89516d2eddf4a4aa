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
    """The optimizer inside accelerate's wrapper; an optimizer without wrapper is returned unchanged."""
    from accelerate.optimizer import AcceleratedOptimizer

    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


@seam(
    "_hf_hook",
    seen="accelerate 1.10 to 1.15, accelerate.hooks.add_hook_to_module",
    gone="refusing to share the weights of an offloaded model",
    fallback="none: such a model is taken for one that is not offloaded",
)
def is_hooked(module: torch.nn.Module) -> bool:
    """Whether accelerate moves this module's weights to the device before each call and back after it."""
    return hasattr(module, "_hf_hook")


declare(
    f"{__name__}.runs_its_own_forward",
    "__wrapped__",
    seen="accelerate 1.10 to 1.15, utils.other.extract_model_from_parallel",
    gone="taking a U-Net out of accelerate's wrappers",
    fallback="none: a model that accelerate has put back by hand is refused",
)


def runs_its_own_forward(module: torch.nn.Module) -> bool:
    """Whether `forward` is the one of the module's class, even if accelerate's `unwrap_model` has set it again.

    `unwrap_model` follows `__wrapped__` too far: past accelerate's wrappers and also past decorators of the class's own
    `forward`, so the function that it sets may be the undecorated one.
    """
    own: Any = type(module).forward
    found = getattr(module.forward, "__func__", None)
    while own is not found and hasattr(own, "__wrapped__"):
        own = own.__wrapped__
    return own is found


def stands_for(original: Callable[..., Any]) -> Callable[[F], F]:
    """Decorator like `functools.wraps(original)`, for a `forward` that accelerate's `unwrap_model` must not remove.

    The decorated function gets the name, documentation and signature of `original`, but no `__wrapped__`, which
    accelerate would follow to the original function.
    """

    def decorate(function: F) -> F:
        wrapped: Any = functools.wraps(original)(function)
        wrapped.__signature__ = inspect.signature(original)
        del wrapped.__wrapped__
        return wrapped

    return decorate
