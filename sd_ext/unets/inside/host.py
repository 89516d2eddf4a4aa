"""`Host`: what a feature may use of the model that it belongs to."""

from __future__ import annotations

import logging
import threading
from collections.abc import Hashable
from contextlib import AbstractContextManager
from typing import Any

from torch import nn

from .steps import Call, States

log = logging.getLogger("sd_ext.unets")


class Host(nn.Module):
    """A U-Net with features, as the features see it; the base of `VariantUNet2DConditionModel`.

    It counts the steps of each caller's run, stores what features remember of a run, and logs messages once.

    Attributes:
        config: Diffusers' configuration, including the options of all features.
        installed: what features store while they are installed, by feature; removed with them, so that copies of the
            model start without it.
    """

    config: Any
    down_blocks: Any
    mid_block: Any
    up_blocks: Any
    installed: dict[str, Any]

    def begin(self) -> None:
        """Initialise: no runs, and no messages logged yet. Called at the end of the construction."""
        self._states = States()
        self.installed = {}
        self._said: set[str] = set()

    # ---- the run -----------------------------------------------------------------------------------------------------

    @property
    def call(self) -> Call | None:
        """The call that this thread is executing: its step and branch.

        None if no active feature needs steps to be counted.
        """
        return self._states.current().call

    @property
    def memory(self) -> dict[str, Any]:
        """What features remember of this caller's run, by feature; cleared when a run begins."""
        return self._states.current().memory

    @property
    def lock(self) -> threading.RLock:
        """A lock to hold while modules are changed that other threads may be running."""
        return self._states.lock

    def reset(self) -> None:
        """Forget all runs, so that the next call begins a new one.

        Needed only if new timesteps do not show that by themselves.
        """
        self._states.reset()

    def cache_context(self, name: str) -> AbstractContextManager[None]:
        """Context manager: calls within it belong to a separate run, for pipelines that take turns with one U-Net.

        Threads do not need this, since each has separate runs anyway.

        Args:
            name: the run's name; using it again continues the same run.
        """
        return self._states.context(name)

    # ---- what features have in common --------------------------------------------------------------------------------

    def uninstalled(self) -> AbstractContextManager[None]:
        """Context manager: the model without its features' changes, which are installed anew afterwards."""
        raise NotImplementedError

    def reuse_keys(self) -> tuple[Hashable, ...]:
        """The active features' values that must be equal in two calls for one to reuse features of the other."""
        raise NotImplementedError

    def say_once(self, message: str) -> None:
        """Log a warning, once for each model."""
        if message not in self._said:
            self._said.add(message)
            log.warning("%s: %s", type(self).__name__, message)
