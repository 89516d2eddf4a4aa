"""What a scheduler remembers between `set_timesteps` and the last `step`."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from ..errors import InputError
from .run import Call, Run
from .schedule import Levels


class StepOutput(SchedulerOutput):
    """`prev_sample`, and `pred_original_sample` (the x0 prediction), computed only if it is read."""

    _run: Run
    _call: Call
    _inputs: tuple[torch.Tensor, torch.Tensor, torch.dtype]

    @property
    def pred_original_sample(self) -> torch.Tensor:
        x, m, dtype = self._inputs
        return self._run.denoised(self._call, x, m).to(dtype)


class Plan:
    """One announced run: its levels and timesteps; `run` once the first call has said where it starts."""

    def __init__(self, levels: Levels, device: str | torch.device | None):
        self.levels = levels
        t = levels.t[:-1]
        dtype = torch.int64 if np.array_equal(t, np.round(t)) else torch.float32
        timesteps = torch.tensor(t, dtype=dtype)
        self.values: list[float] = timesteps.tolist()
        self.timesteps = timesteps.to(device)
        self.begin: int | None = None
        self.ready: Run | None = None
        """A run compiled ahead, for a start at the first call or at the one announced."""
        self.run: Run | None = None

    def index_of(self, timestep: float | torch.Tensor) -> int:
        """Where a timestep stands, for a start nobody announced.

        A timestep that is a view of `timesteps`, as in a pipeline's loop, gives its place without reading the device.
        """
        if isinstance(timestep, torch.Tensor):
            if timestep.untyped_storage().data_ptr() == self.timesteps.untyped_storage().data_ptr():
                return int(timestep.storage_offset() - self.timesteps.storage_offset())
            timestep = float(timestep.flatten()[0])
        places = [i for i, value in enumerate(self.values) if abs(value - timestep) < 1e-3]
        if not places:
            raise InputError(f"timestep {timestep:g} is not one of this run's timesteps {self.values}")
        return places[0]


class Runs(threading.local):
    """Whose run is whose: `plan` is this thread's own.

    A deep copy carries the copying thread's run on from where it stands, as pipelines that branch in the middle of a
    run need. They may put one copy into several branches: each takes its own at its next step (`unshared`).
    """

    plan: Plan | None = None
    copied: bool = False

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
