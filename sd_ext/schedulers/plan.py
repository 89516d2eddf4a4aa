"""What a scheduler remembers between `set_timesteps` and the last `step`, and what a step returns."""

from __future__ import annotations

import copy
import threading
from collections import OrderedDict
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from ..board import NUMBERS
from ..errors import InputError
from .position import Places, number
from .run import Call, Run


class StepOutput(SchedulerOutput):
    """What `step` returns: `prev_sample`, the latent at the next level, and `pred_original_sample`, the x0 prediction,
    computed only if it is read.
    """

    made: tuple[Run, Call, torch.Tensor, torch.Tensor, torch.dtype] | None

    def __init__(self, prev_sample: torch.Tensor, made: Any = None):
        """Filled by hand: what Diffusers' base class does for outputs of any fields takes as long as a step.

        Args:
            prev_sample: x'.
            made: the run and its call, x and the network's output in the precision of the sums, and the dtype of x'.
        """
        OrderedDict.__setitem__(self, "prev_sample", prev_sample)
        self.__dict__.update(prev_sample=prev_sample, made=made)

    @property
    def pred_original_sample(self) -> torch.Tensor:
        assert self.made is not None
        run, call, x, m, dtype = self.made
        return run.denoised(call, x, m).to(dtype)


class Plan(Places):
    """One announced run: its levels and timesteps, and how far it is.

    A run is announced by `set_timesteps`. Where it starts is known with `set_begin_index`, or only with its first step:
    image to image leaves the first calls out. Its table is made for that start.

    Args:
        levels: the levels of its calls and the end; their `t` are the timesteps.
        device: where `timesteps` shall be.
        implied: whether nobody announced it: the trained timesteps, for a step before any `set_timesteps`.
        counted: whether timesteps count something, so that they are integers where all are whole.
    """

    def __init__(
        self, levels: Any, device: str | torch.device | None = None, implied: bool = False, counted: bool = True
    ):
        t = [float(value) for value in levels.t[:-1]]
        whole = counted and all(v.is_integer() for v in t)
        timesteps = torch.tensor(t, dtype=torch.int64 if whole else torch.float32)
        super().__init__(timesteps.to(device), timesteps.tolist())
        self.levels, self.implied = levels, implied
        self.begin: int | None = None
        """The call that `set_begin_index` named."""
        self.ready: Run | None = None
        """A run compiled ahead, for a start at the first call or at the one named."""
        self.run: Run | None = None
        """The run, once its first step has been asked for."""
        self.since = next(NUMBERS)
        """When the last step was made, or the run announced; see `board.Board.take`."""
        self.taken: tuple[torch.Tensor, torch.Tensor] | None = None
        """What the last step was handed, and the half of it that it took from the board."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Plan:
        """The runs are copied; levels and timesteps, which nothing changes, are not, so that views of the original's
        timesteps are known to the copy.
        """
        other = copy.copy(self)
        other.ready, other.run = copy.deepcopy((self.ready, self.run), memo)
        return other

    def index_of(self, timestep: float | torch.Tensor) -> int:
        """Which call a timestep is that of; the next one where it is that of several.

        Raises:
            InputError: the run has no such timestep.
        """
        place = self.place(timestep, self.due)
        if place is None:
            raise self.unknown(number(timestep)[0])
        return place

    def unknown(self, timestep: float) -> InputError:
        """That the run has no such timestep."""
        return InputError(f"timestep {timestep:g} is not one of this run's timesteps {self.values}")

    @property
    def due(self) -> int:
        """The call that comes next."""
        return self.run.begin + self.run.position if self.run else self.begin or 0


class Runs(threading.local):
    """Which run is whose: `plan` is the one that this thread announced.

    A deep copy carries the copying thread's run on from where it stands, as pipelines that branch in the middle of a
    run need. They may put one copy into several branches: each takes its own at its next step (`unshared`).
    """

    plan: Plan | None = None
    copied: bool = False
    asked: Any = None
    """What the run that is being announced was asked for, for placing it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Runs:
        other = Runs()
        other.plan, other.copied = copy.deepcopy(self.plan, memo), True
        return other

    def unshared(self) -> Runs:
        """These runs, or for a fresh copy a copy of its own."""
        if not self.copied:
            return self
        own = copy.deepcopy(self)
        own.copied = False
        return own
