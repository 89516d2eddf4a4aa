"""The teacher's steps along its ODE, from a sampler's table, and the scalings of the consistency function.

A consistency function f(x_t, t) takes every point of a path of the probability-flow ODE to the path's end (Song et al.
2023, arXiv 2303.01469). It is made from the network's x0 such that f(x, 0) = x:

    f(x, t) = c_skip(t) x + c_out(t) x0(x, t)        (eq. 5; c_skip and c_out as in LCM, arXiv 2310.04378)
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sd_ext.errors import InputError
from sd_ext.schedulers import make_scheduler
from sd_ext.schedulers.prediction import linear_map
from sd_ext.schedulers.run import P0, STASH, X
from sd_ext.schedulers.samplers.consistency import boundary
from sd_ext.schedulers.table import Table

MOST_CALLS = 8  # of a step; a sampler that looks back has one step only

Predict = Callable[[Tensor, Tensor], Tensor]
"""Latents (b, c, h, w) and timesteps (b,) -> what the network predicts, with guidance."""


def place_of(t: Tensor, grid: Tensor) -> Tensor:
    """The last place whose timestep is not below t, the first if there is none: (b,) int64.

    Args:
        t: timesteps (b,).
        grid: the timestep of each place, falling: (n,).
    """
    return (grid >= t[:, None]).sum(1).clamp_min(1) - 1


def step_starts(table: Table) -> list[int]:
    """The calls of a table at which a step begins: from there on nothing is read that was kept before, but x."""
    oldest, stashed = [], 0
    for call, row in enumerate(table.rows):
        reads = [call - back for back in range(table.history) if np.any(row[:, P0 + back])]
        oldest.append(min([call, *reads, *([stashed] if np.any(row[:, STASH]) else [])]))
        carried = row[STASH, STASH] == 1 and not np.any(np.delete(row[STASH], STASH))
        stashed = stashed if carried else call
    return [call for call in range(table.calls) if min(oldest[call:]) >= call]


class TeacherSteps(nn.Module):
    """The steps of a sampler over the whole noise schedule, n in all, each of which can be taken by itself.

    Place i, from 0 at the noisiest, is the level at which step i begins and step i - 1 ends; place n is the end.

    Args:
        solver: the sampler's name.
        skip: timesteps between two calls of its grid: 999, 999 - skip, ...
        noise: the noise schedule: keyword arguments of Diffusers' schedulers.
        timestep_scaling: see `boundary`.

    Attributes:
        t: the timestep of each place but the end, falling: (n,) int64.

    Raises:
        InputError: the sampler adds noise, or looks back over its steps, or `skip` leaves a rest.
    """

    t: Tensor
    calls: Tensor
    reads: Tensor
    rows: Tensor
    jumps: Tensor

    def __init__(self, solver: str, skip: int, noise: dict[str, Any], timestep_scaling: float = 10.0):
        super().__init__()
        timesteps = int(noise.get("num_train_timesteps", 1000))
        if timesteps % skip:
            raise InputError(f"skip is {skip}; it must divide the model's {timesteps} timesteps")
        scheduler = make_scheduler(solver, noise)
        scheduler.set_timesteps(timesteps=list(range(timesteps - 1, -1, -skip)))
        table = scheduler.table()
        starts = step_starts(table)
        bounds = [*starts, table.calls]
        most = max(end - start for start, end in pairwise(bounds))
        if table.stochastic or table.fields > 1 or most > MOST_CALLS:
            why = "adds noise" if table.stochastic else "looks back over its steps"
            raise InputError(f"solver is {solver}, which {why}; take one such as ddim, heun or dpm2")
        prediction, levels = str(noise["prediction_type"]), table.levels
        alpha, sigma, _ = table.numbers()
        reads = [linear_map(prediction, table.basis, *level) for level in zip(alpha, sigma, strict=True)]
        still = np.zeros(table.rows.shape[1:])
        still[X, X] = 1.0
        calls = [
            [min(start + each, end - 1) for each in range(most)] for start, end in zip(starts, bounds[1:], strict=True)
        ]
        rows = [
            [table.rows[start + each] if start + each < end else still for each in range(most)]
            for start, end in zip(starts, bounds[1:], strict=True)
        ]
        self._keep("t", levels.t[starts], torch.int64)
        self._keep("calls", levels.t[calls])
        self._keep("reads", np.asarray(reads)[calls])
        self._keep("rows", np.asarray(rows)[..., :-1])
        jumps = [(1.0, 0.0)]
        for i in reversed(starts):
            c_skip, c_out = boundary(float(levels.t[i]), timestep_scaling)
            of_x, of_m = linear_map(prediction, "x0", alpha[i], sigma[i])
            jumps.insert(0, (c_skip + c_out * of_x, c_out * of_m))
        self._keep("jumps", jumps)

    def _keep(self, name: str, values: Any, dtype: torch.dtype = torch.float32) -> None:
        self.register_buffer(name, torch.as_tensor(np.asarray(values)).to(dtype), persistent=False)

    def take(self, x: Tensor, place: Tensor, predict: Predict) -> Tensor:
        """Take step `place` from x.

        Args:
            x: latents at that place (b, c, h, w), float32.
            place: (b,), each from 0 to n - 1.
            predict: the network.

        Returns:
            Latents at place + 1, of the same shape.
        """
        stash, past = torch.zeros_like(x), []
        for call in range(self.rows.shape[1]):
            of_x, of_m = (_wide(each) for each in self.reads[place, call].unbind(-1))
            past.insert(0, of_x * x + of_m * predict(x, self.calls[place, call]).to(x.dtype))
            weights = self.rows[place, call]
            slots = [x, stash, *past][: weights.shape[-1]]
            x, stash = (
                sum((_wide(weights[:, out, i]) * slot for i, slot in enumerate(slots)), torch.zeros_like(x))
                for out in (X, STASH)
            )
        return x

    def jump(self, x: Tensor, place: Tensor, prediction: Tensor) -> Tensor:
        """The consistency function f at (x, place), from the network's prediction there; x itself at the end."""
        of_x, of_m = (_wide(each) for each in self.jumps[place].unbind(-1))
        return of_x * x + of_m * prediction.to(x.dtype)

    def times(self, place: Tensor) -> Tensor:
        """The timesteps of places, (b,) int64; 0 for the end, where no prediction counts."""
        return torch.cat([self.t, self.t.new_zeros(1)])[place]


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None]
