"""What a feature may ask of the model that has it."""

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
    """A U-Net with features, as these see it; the base of `VariantUNet2DConditionModel`.

    It counts the calls of each caller, keeps what features remember of a run, and says things once.

    Attributes:
        config: Diffusers' configuration, with the options of all features.
        installed: what features keep while they are in place, by feature; gone when they are taken off, so that
            copies begin without.
    """

    config: Any
    down_blocks: Any
    mid_block: Any
    up_blocks: Any
    installed: dict[str, Any]

    def begin(self) -> None:
        """Begin without any run and with nothing said; the last part of the construction."""
        self._states = States()
        self.installed = {}
        self._said: set[str] = set()

    # ---- the run -----------------------------------------------------------------------------------------------------

    @property
    def call(self) -> Call | None:
        """The call in progress in this thread: its step and branch. None where no active feature counts steps."""
        return self._states.current().call

    @property
    def memory(self) -> dict[str, Any]:
        """What features remember of this caller's run, by feature; cleared when a run begins."""
        return self._states.current().memory

    @property
    def lock(self) -> threading.RLock:
        """To be held while modules are changed that other threads may be running."""
        return self._states.lock

    def reset(self) -> None:
        """Forget the runs in progress: the next call begins one. Needed only where no new timesteps say so."""
        self._states.reset()

    def cache_context(self, name: str) -> AbstractContextManager[None]:
        """Within, calls belong to a run of their own: for several pipelines that take turns with one U-Net.

        Threads need no context: the runs of each are apart anyway.

        Args:
            name: of the run; the same name goes on with the same run.
        """
        return self._states.context(name)

    # ---- what features have in common --------------------------------------------------------------------------------

    def uninstalled(self) -> AbstractContextManager[None]:
        """Within, the model is without its features' changes; after, they are made again, on what is there then."""
        raise NotImplementedError

    def reuse_keys(self) -> tuple[Hashable, ...]:
        """What must be equal in two calls, by the active features, for one to reuse features of the other."""
        raise NotImplementedError

    def say_once(self, message: str) -> None:
        """Log a warning, once for each model."""
        if message not in self._said:
            self._said.add(message)
            log.warning("%s: %s", type(self).__name__, message)
