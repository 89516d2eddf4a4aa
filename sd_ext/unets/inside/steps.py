"""Find which step of a sampling run a call of the network belongs to.

The network gets a timestep, but no position in the run. Pipelines iterate over a tensor of timesteps, so a timestep is
a view of one element: its offset in that storage is its position in the run, known without reading the device. The
rules:

- another tensor of timesteps, or an earlier position in the same one, is a new run;
- another position is a new step;
- the same position is a further call of the same step, a branch, as when the halves of guidance are computed
  separately.

Timesteps that are not such views (numbers, tensors made for one call) are compared by value: a different one is a new
step, a higher one a new run. On CUDA this reads the value at every call, which waits for the device; with views, one
read per run is enough.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ...seams.torch import version
from .told import UNTOLD, Told


@dataclass
class Call:
    """One call of the network.

    Args:
        step: the step in the run, from 0.
        branch: the number of the call within its step, from 0.
        timestep: its value; the first one if a batch has several.
        total: the number of steps of the run, if the pipeline's tensor of timesteps is known.
        rises: whether the timestep is higher than that of the step before, as when a sampler restarts.
        model: what will be run: the U-Net itself, or a view of it (`views.py`).
        exact: set by a feature that needs every layer to run; no features may be reused in this call.
        eager: set by a feature that interrupts the network while it runs; a compiled model then runs uncompiled.
    """

    step: int
    branch: int
    timestep: float
    total: int | None = None
    rises: bool = False
    model: Any = None
    exact: bool = False
    eager: bool = False


@dataclass(frozen=True)
class _Place:
    """A timestep's values and, if it is a view of a tensor of timesteps, that tensor and the position in it."""

    values: tuple[float, ...]
    schedule: Any = None
    position: int = 0


class _Schedule:
    """A pipeline's tensor of timesteps, read once. Keeps its storage alive, so that the address is not used again."""

    def __init__(self, timestep: torch.Tensor):
        self.storage = timestep.untyped_storage()
        self.identity = _identity(timestep)
        self.length = _length(timestep)
        whole = timestep.detach().as_strided((self.length,), (1,), 0)
        self.values: list[float] = [-float(i) for i in range(self.length)] if whole.is_meta else whole.tolist()


def _length(timestep: torch.Tensor) -> int:
    return timestep.untyped_storage().nbytes() // timestep.element_size()


def _identity(timestep: torch.Tensor) -> tuple[Any, ...]:
    return (
        *(timestep.untyped_storage().data_ptr(), _length(timestep)),
        *(timestep.dtype, timestep.device, version(timestep)),
    )


def _is_element(timestep: torch.Tensor, known: bool) -> bool:
    """Whether a tensor is one element of a pipeline's tensor of timesteps, perhaps expanded over the batch: of a longer
    one, or of the only one of a run of one step, where it is known to be a run's.
    """
    one = timestep.numel() == 1 or not any(timestep.stride())
    return one and (known or _length(timestep) > 1)


class StepTracker:
    """Counts the steps and branches of one caller, by the rules at the top of this file."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Make the next call begin a run."""
        self._last: _Place | None = None
        self._schedule: _Schedule | None = None
        self._step = self._branch = self._begin = 0
        self._rises = False

    def observe(self, timestep: torch.Tensor | float, known: bool = False) -> Call:
        """Count a call.

        Args:
            timestep: a number, or a tensor `()`, `(1,)` or `(batch,)`.
            known: whether it is known to be of a pipeline's timesteps, the very object.

        Returns:
            The call with its step and branch.
        """
        last, place = self._last, self._place(timestep, known)
        if last is None or _is_new_run(last, place):
            self._step, self._branch, self._begin, self._rises = 0, 0, place.position, False
        elif place == last:
            self._branch += 1
        else:
            self._step, self._branch, self._rises = self._step + 1, 0, place.values[0] > last.values[0]
        self._last = place
        total = place.schedule.length - self._begin if place.schedule else None
        return Call(self._step, self._branch, place.values[0], total, self._rises)

    def _place(self, timestep: torch.Tensor | float, known: bool) -> _Place:
        if not isinstance(timestep, torch.Tensor):
            return _Place((float(timestep),))
        if not _is_element(timestep, known):
            values = timestep.detach().flatten()
            listed = (0.0,) if values.is_meta else tuple(values.tolist())
            return _Place(listed[:1] if len(set(listed)) == 1 else listed)  # the same for every batch size
        if self._schedule is None or self._schedule.identity != _identity(timestep):
            self._schedule = _Schedule(timestep)
        position = int(timestep.storage_offset())
        return _Place((self._schedule.values[position],), self._schedule, position)


def _is_new_run(last: _Place, place: _Place) -> bool:
    if place.schedule is not last.schedule:
        return True
    if place.schedule is not None:
        return place.position < last.position
    return place.values[0] > last.values[0]


@dataclass
class State:
    """What a model stores for one caller.

    Args:
        tracker: counts the caller's calls.
        memory: what features remember of the run, by their name; cleared when a run begins.
        call: the current call.
        told: what is said about the current call.
        base: the network of the current call, if it is not the model itself but a view of it.
        generation: how often `States.reset` had been called when this was last used.
        weights: how often `States.forget` had been called then.
    """

    tracker: StepTracker = field(default_factory=StepTracker)
    memory: dict[str, Any] = field(default_factory=dict)
    call: Call | None = None
    told: Told = UNTOLD
    base: Any = None
    generation: int = 0
    weights: int = 0

    def forget(self) -> None:
        """Make the next call begin a run."""
        self.tracker.reset()
        self.memory.clear()


class States:
    """The states of all callers of one model: one for each thread, and within a thread one for each named context.

    A copy of a model has no callers yet, so copying or unpickling this gives an empty one.

    Attributes:
        lock: held while options are changed.
        said: the warnings that have been logged.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._generation = 0
        self._weights = 0
        self.lock = threading.RLock()
        self.said: set[str] = set()

    def current(self) -> State:
        """The state of this thread in its current context."""
        by_name: dict[str | None, State] = self._local.__dict__.setdefault("by_name", {})
        name = self._local.__dict__.get("name")
        state = by_name.get(name)
        if state is None:
            state = by_name[name] = State(generation=self._generation, weights=self._weights)
        if state.generation != self._generation:
            state.forget()
            state.generation = self._generation
        if state.weights != self._weights:
            state.memory.clear()
            state.weights = self._weights
        return state

    def forget(self) -> None:
        """Forget what all callers' runs have remembered, as after a change of the weights; their steps go on."""
        self._weights += 1
        for state in self._local.__dict__.get("by_name", {}).values():
            state.memory.clear()

    def reset(self) -> None:
        """Forget the runs of all callers: the next call of each begins one."""
        self._generation += 1
        for state in self._local.__dict__.get("by_name", {}).values():
            state.forget()  # what this thread keeps goes at once, other threads' with their next call

    def observe(self, timestep: torch.Tensor | float) -> Call:
        """Count a call of this thread, and clear the memory if a run begins.

        Argument and result as `StepTracker.observe`, save that step and total are what was told, if they were.
        """
        state = self.current()
        state.call = call = state.tracker.observe(timestep, state.told.step is not None)
        if call.step == call.branch == 0:
            state.memory.clear()
        if state.told.step is not None:
            call.step, call.total = state.told.step, state.told.total
        return call

    @contextlib.contextmanager
    def context(self, name: str) -> Iterator[None]:
        """Context manager: calls of this thread within the block use the state of this name."""
        outside = self._local.__dict__.get("name")
        self._local.name = name
        try:
            yield
        finally:
            self._local.name = outside

    def __deepcopy__(self, memo: dict[int, Any]) -> States:
        return States()

    def __copy__(self) -> States:
        return States()

    def __reduce__(self) -> tuple[Any, ...]:
        return States, ()
