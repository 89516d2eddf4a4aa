"""Inversion: from a picture to the noise that leads to it, for editing. The levels of these runs rise."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch

from ...errors import InputError
from .. import placement
from ..base import TableScheduler
from ..info import SamplerInfo
from ..schedule import ZERO, Array, Levels
from ..table import Table
from .dpm_solver import DPMSolverMultistepScheduler
from .first_order import first_order

__all__ = ["DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"]


class InverseScheduler(TableScheduler):
    """Base of schedulers whose runs go from a picture to noise."""

    places_itself = "upwards"

    @property
    def _least(self) -> float:
        """The training time of least noise; 0 of flow matching is clean."""
        return float(self.schedule.t_min)


class DDIMInverseScheduler(InverseScheduler):
    """DDIM upwards, to the noise from which DDIM leads to a picture; see `first_order`.

    Order 1, 1 call a step. Source: Song et al. 2021, arXiv 2010.02502, section 4.3; Mokady et al. 2023, arXiv
    2211.09794, eq. 3. As there and in Diffusers, the network is told the timestep that the step leads to, at which DDIM
    will ask it on the way back, while x is still a step below.

    `clip_sample` is off, other than in Diffusers: what x0 is cut to cannot be found again.

    Args:
        set_alpha_to_one: start clean; False starts at t = 0's level, where Stable Diffusion's DDIM ends.
    """

    set_alpha_to_one: bool = True
    timestep_spacing: str = "leading"

    def _setup(self) -> None:
        super()._setup()
        if self.config["set_alpha_to_one"] and self.config["prediction_type"] == "sample":
            raise InputError(
                "DDIMInverseScheduler cannot start clean with a network that predicts the picture; pass "
                "set_alpha_to_one=False"
            )

    @property
    def initial_alpha_cumprod(self) -> torch.Tensor:
        """alpha^2 where runs start: 1 at a clean picture."""
        return torch.tensor(float(self._start().alpha[0]) ** 2)

    def _start(self) -> Levels:
        return ZERO if self.config["set_alpha_to_one"] else self.schedule.at([self._least])

    def _place(self, calls: int) -> Levels:
        up, start = _rising(self._grid_levels(calls)[:-1]), self._start()
        own_steps = self.schedule.flow or placement.chosen_grid(self.config)  # on a spacing, the first as Diffusers'
        if own_steps and up.sigma[0] <= start.sigma[0] * (1 + 1e-9):
            up = _rising(self._grid_levels(calls + 1)[:-1])[1:]
        return replace(start.then(up), t=np.append(up.t, up.t[-1]))

    def _table(self, levels: Levels, eta: float) -> Table:
        return first_order(levels, basis="eps", preserves="nothing" if levels.sigma[0] == 0 else "marginal")


class DPMSolverMultistepInverseScheduler(DPMSolverMultistepScheduler, InverseScheduler):
    """DPM-Solver++ upwards; see `multistep`.

    Order 1 to 3 (`solver_order`), 1 call a step. Source: arXiv 2211.01095, alg. 2; Diffusers' scheduler of the name.

    Starts at the training's least noise. Every network call is at its own level, so that only the polynomials differ
    from those of the way back.

    Args:
        solver_order, algorithm_type, solver_type, lower_order_final, euler_at_final, exact_third_order, eta: see
            `DPMSolverMultistepScheduler`.
    """

    _closed_grid: ClassVar[bool] = True

    def _setup(self) -> None:
        super()._setup()
        if self.config["algorithm_type"].startswith("sde"):
            raise InputError(
                f"DPMSolverMultistepInverseScheduler cannot be {self.config['algorithm_type']!r}: the noise that leads "
                "to a picture is found, not drawn; choose 'dpmsolver++' or 'dpmsolver'"
            )

    def _place(self, calls: int) -> Levels:
        grid = placement.grid_name(self.config)
        if grid == "leading":
            stride = (self.noisiest_timestep + 1) // (calls + 1)
            return self._to_noise(np.arange(calls) * float(stride) + self.config["steps_offset"])
        if grid == "trailing":
            stops = np.round(np.arange(calls) * ((self.noisiest_timestep + 1) / calls))
            return self._to_noise(np.maximum(stops - 1, 0.0))
        if self._is_by_flag and calls > 1:
            up = _rising(self._grid_levels(calls)[:-1])
            return up.then(self.schedule.at_lambda(up[-1:].lam - placement.IDLE)).with_signal()
        up = _rising(self._grid_levels(calls + 1)[:-1])[1:]
        return self.schedule.at([self._least]).then(up).with_signal()

    @property
    def _is_by_flag(self) -> bool:
        """Whether the grid is one of Diffusers' flags; there the last call changes nothing, as in Diffusers."""
        flagged = self.config["grid"] is None and placement.chosen_grid(self.config) is not None
        return flagged and not self.schedule.flow

    @property
    def noisiest_timestep(self) -> int:
        """The training timestep where "leading" and "trailing" runs end."""
        clipped = self.config["lambda_min_clipped"]
        return int(self.schedule.at_lambda([clipped]).t[0]) if np.isfinite(clipped) else self.schedule.t_max

    def _to_noise(self, t: Array) -> Levels:
        return self.schedule.at(np.append(np.maximum(t, self._least), self.noisiest_timestep)).with_signal()


def _rising(levels: Levels) -> Levels:
    return levels[::-1]


SAMPLERS = (
    SamplerInfo(
        "ddim inverse",
        DDIMInverseScheduler,
        1,
        "arXiv 2010.02502, section 4.3",
        ("inverse ddim", "ddim inversion"),
        options={"set_alpha_to_one": False},
        note="from a picture to noise",
    ),
    SamplerInfo(
        "dpm++ 2m inverse",
        DPMSolverMultistepInverseScheduler,
        2,
        "arXiv 2211.01095, alg. 2",
        ("inverse dpm++ 2m", "dpmpp 2m inverse", "dpm++ 2m inversion"),
        options={"solver_order": 2, "algorithm_type": "dpmsolver++"},
        note="from a picture to noise",
    ),
)
