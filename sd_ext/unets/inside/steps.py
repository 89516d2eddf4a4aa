"""Which step of a sampling a call of the network is, found from what pipelines pass.

A network is called with a timestep and nothing that says where it stands in a run. Pipelines walk through a tensor of
timesteps, so a timestep is a view of an element: its place in that storage is its position in the run, known without
reading the device. The rules:

- another tensor of timesteps, or an earlier place in the same one, is a new run;
- another place is a new step;
- the same place is a further call of the same step: its branch, as when the guided halves are called apart.

Timesteps that are no such view (numbers, tensors made for one call) are compared by value: one that changed is a new
step, one that rises a new run. On CUDA this reads the value, which waits for the device; the view needs one read a run.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from ...seams.torch import version


@dataclass
class Call:
    """One call of the network.

    Args:
        step: 0 for the first step of the run.
        branch: 0 for the first call of its step.
        timestep: its value; of a batch with several, the first.
        total: steps of the run, if the pipeline's tensor of timesteps is known.
        rises: whether the timestep is above the step before, as when a sampler restarts.
        model: what will be run: the U-Net itself, or a view of it (`views.py`).
        exact: set by a feature that needs every layer to run; nothing may be reused in this call.
        eager: set by a feature that looks into the network while it runs; a compiled model runs uncompiled.
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
    """Where a timestep is read from: values, and for a view of a tensor of timesteps also which one and where."""

    values: tuple[float, ...]
    schedule: Any = None
    position: int = 0


class _Schedule:
    """A pipeline's tensor of timesteps, read once. Its storage is kept, so that its address stays its own."""

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


def _is_element(timestep: torch.Tensor) -> bool:
    """Whether it is one element of a longer tensor, perhaps expanded over the batch."""
    one = timestep.numel() == 1 or not any(timestep.stride())
    return one and _length(timestep) > 1


class StepTracker:
    """Counts the calls of one caller, by the rules at the top of this file."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """The next call begins a run."""
        self._last: _Place | None = None
        self._schedule: _Schedule | None = None
        self._step = self._branch = self._begin = 0
        self._rises = False

    def observe(self, timestep: torch.Tensor | float) -> Call:
        """Count a call.

        Args:
            timestep: a number, or a tensor `()`, `(1,)` or `(batch,)`.

        Returns:
            Its step and branch.
        """
        last, place = self._last, self._place(timestep)
        if last is None or _is_new_run(last, place):
            self._step, self._branch, self._begin, self._rises = 0, 0, place.position, False
        elif place == last:
            self._branch += 1
        else:
            self._step, self._branch, self._rises = self._step + 1, 0, place.values[0] > last.values[0]
        self._last = place
        total = place.schedule.length - self._begin if place.schedule else None
        return Call(self._step, self._branch, place.values[0], total, self._rises)

    def _place(self, timestep: torch.Tensor | float) -> _Place:
        if not isinstance(timestep, torch.Tensor):
            return _Place((float(timestep),))
        if not _is_element(timestep):
            values = timestep.detach().flatten()
            listed = (0.0,) if values.is_meta else tuple(values.tolist())
            return _Place(listed[:1] if len(set(listed)) == 1 else listed)  # of a batch of any size
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
    """What a variant remembers for one caller.

    Args:
        tracker: counts the caller's calls.
        memory: what features remember of the run, by their name; cleared when a run begins.
        call: the call in progress.
        generation: how often the model's states had been reset when this one was last used.
    """

    tracker: StepTracker = field(default_factory=StepTracker)
    memory: dict[str, Any] = field(default_factory=dict)
    call: Call | None = None
    generation: int = 0

    def forget(self) -> None:
        """The next call begins a run."""
        self.tracker.reset()
        self.memory.clear()


class States:
    """The states of all callers of one model: one for each thread, and within it one for each named context.

    A copy or a pickle of a model has no callers yet, so a copy of this is empty.

    Attributes:
        lock: to be held while modules are changed that other threads may be running.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._generation = 0
        self.lock = threading.RLock()

    def current(self) -> State:
        """The state of this thread in the context it is in."""
        by_name: dict[str | None, State] = self._local.__dict__.setdefault("by_name", {})
        state = by_name.setdefault(self._local.__dict__.get("name"), State(generation=self._generation))
        if state.generation != self._generation:
            state.forget()
            state.generation = self._generation
        return state

    def reset(self) -> None:
        """Forget every run of every caller, as after a change of the weights."""
        self._generation += 1
        for state in self._local.__dict__.get("by_name", {}).values():
            state.forget()  # what this thread keeps goes at once, other threads' with their next call

    def observe(self, timestep: torch.Tensor | float) -> Call:
        """Count a call of this thread, and forget the run before where it begins a new one. Argument as there."""
        state = self.current()
        state.call = call = state.tracker.observe(timestep)
        if call.step == call.branch == 0:
            state.memory.clear()
        return call

    @contextlib.contextmanager
    def context(self, name: str) -> Iterator[None]:
        """Calls of this thread within are counted and remembered under this name."""
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
