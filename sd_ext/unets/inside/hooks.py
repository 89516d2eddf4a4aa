"""Forward hooks: how features change blocks without putting anything in their place."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class Hooks:
    """Forward hooks that can be taken off together."""

    def __init__(self) -> None:
        self.handles: list[RemovableHandle] = []

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Have `hook(module, args, kwargs)` called before each call of the module.

        It may return `(args, kwargs)` to replace them, or None.
        """
        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Have `hook(module, args, kwargs, output)` called after each call of the module.

        It may return what to give in place of the output, or None.
        """
        self.handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def remove(self) -> None:
        """Take all of them off."""
        for handle in self.handles:
            handle.remove()


class OfThread(threading.local):
    """Base of the values that one model's hooks hand to each other during a call.

    Several threads may call one model at a time; each sees values of its own.
    """
