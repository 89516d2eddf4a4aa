"""`Host`: what a feature may use of the model that it is bound to, and the part of a model that keeps it."""

from __future__ import annotations

import logging
from collections.abc import Hashable
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import nn

from .steps import Call, State, States
from .told import Told

log = logging.getLogger("sd_ext.unets")


class Host(Protocol):
    """A U-Net with features, as the features see it.

    Besides this it is a `torch.nn.Module` of `UNet2DConditionModel`'s architecture.

    Attributes:
        config: Diffusers' configuration.
        training: whether it is in training mode.
    """

    config: Any
    training: bool
    down_blocks: Any
    mid_block: Any
    up_blocks: Any

    @property
    def network(self) -> Any:
        """The U-Net itself, for its modules."""

    @property
    def call(self) -> Call | None:
        """The call that this thread is executing: its step and branch.

        None if no active feature needs steps to be counted.
        """

    @property
    def told(self) -> Told:
        """What is said about the call that this thread is executing."""
        ...

    @property
    def memory(self) -> dict[str, Any]:
        """What features remember of this caller's run, by feature; cleared when a run begins or weights change."""
        ...

    def running(self, network: Any) -> AbstractContextManager[None]:
        """Context manager: calls of this thread run another network, which is a view of this one."""
        ...

    def telling(self, told: Told) -> AbstractContextManager[None]:
        """Context manager: other things are said of the calls that a feature makes by itself."""
        ...

    def reuse_keys(self) -> tuple[Hashable, ...]:
        """The active features' values that must be equal in two calls for one to reuse features of the other."""
        ...

    def say_once(self, message: str) -> None:
        """Log a warning, once for each model."""
        ...


class Runs(nn.Module):
    """Mixin of `VariantUNet2DConditionModel`: counts the steps of each caller's run and keeps what features remember.

    All of it is in one object, `_states`, and belongs to threads and contexts.
    """

    _states: States

    @property
    def network(self) -> Any:
        """The U-Net itself."""
        return self

    @property
    def call(self) -> Call | None:
        """The call that this thread is executing; see `Host`."""
        return self._states.current().call

    @property
    def told(self) -> Told:
        """What is said about the call that this thread is executing; see `Host`."""
        return self._states.current().told

    @property
    def memory(self) -> dict[str, Any]:
        """What features remember of this caller's run; see `Host`."""
        return self._states.current().memory

    def running(self, network: Any) -> AbstractContextManager[None]:
        """Context manager: calls of this thread run another network; see `Host`."""
        return _Set(self._states.current(), "base", network)

    def telling(self, told: Told) -> AbstractContextManager[None]:
        """Context manager: other things are said of the calls that a feature makes by itself; see `Host`."""
        return _Set(self._states.current(), "told", told)

    def reset(self) -> None:
        """Forget all runs, so that the next call begins a new one.

        Needed only if new timesteps do not show that by themselves.
        """
        self._states.reset()

    def forget(self) -> None:
        """Forget all that features remember, as after a change of the weights. The steps of runs are counted on."""
        self._states.forget()

    def cache_context(self, name: str, **_: Any) -> AbstractContextManager[None]:
        """Context manager: calls within it belong to a separate run, for pipelines that take turns with one U-Net.

        Threads do not need this, since each has separate runs anyway.

        Args:
            name: the run's name; using it again continues the same run. What Diffusers gives besides, the place in the
                run, is known from the timesteps.
        """
        return self._states.context(name)

    def say_once(self, message: str) -> None:
        """Log a warning, once for each model."""
        if message not in self._states.said:
            self._states.said.add(message)
            log.warning("%s: %s", type(self).__name__, message)


class _Set:
    """Context manager: a state's attribute has another value; see `Host.running` and `Host.telling`."""

    def __init__(self, state: State, name: str, value: Any):
        self.state, self.name, self.value = state, name, value

    def __enter__(self) -> None:
        self.before = getattr(self.state, self.name)
        setattr(self.state, self.name, self.value)

    def __exit__(self, *_: object) -> None:
        setattr(self.state, self.name, self.before)
