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
        """Add a pre-hook (module, args, kwargs)."""
        self.handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Add a hook (module, args, kwargs, output)."""
        self.handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def remove(self) -> None:
        """Leave no hook behind."""
        for handle in self.handles:
            handle.remove()


class OfThread(threading.local):
    """What hooks leave for each other within a call: apart for each thread, as the runs of a variant are."""
