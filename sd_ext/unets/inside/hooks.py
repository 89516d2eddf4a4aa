"""Forward hooks: how features change blocks without replacing them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class Hook:
    """A hook of a feature. Copies of a module get it as it is, so that it can be told apart and dropped from them.

    Args:
        call: what PyTorch calls.
    """

    def __init__(self, call: Callable[..., Any]):
        self.call = call

    def __call__(self, *args: Any) -> Any:
        return self.call(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return self


class Hooks:
    """Forward hooks that can be removed together."""

    def __init__(self) -> None:
        self.handles: list[RemovableHandle] = []

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call `hook(module, args, kwargs)` before each call of the module.

        The hook may return `(args, kwargs)` to replace the arguments, or None.
        """
        self.handles.append(module.register_forward_pre_hook(Hook(hook), with_kwargs=True))

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Call `hook(module, args, kwargs, output)` after each call of the module.

        The hook may return a replacement for the output, or None.
        """
        self.handles.append(module.register_forward_hook(Hook(hook), with_kwargs=True))

    def remove(self) -> None:
        """Remove all of these hooks."""
        while self.handles:
            self.handles.pop().remove()


class OfThread(threading.local):
    """Base of objects through which the hooks of one model share values during a call.

    Every thread sees its own values, so several threads may call one model at the same time.
    """
