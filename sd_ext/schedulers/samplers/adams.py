"""Adams-Bashforth with fixed weights on epsilon: PLMS, PNDM, iPNDM, and the two-term gradient estimation."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from ..base import TableScheduler
from ..info import SamplerInfo
from ..multistage import MultiCallScheduler, Stage, between, chain, multistage, with_nodes
from ..plan import StepOutput
from ..schedule import ZERO, Levels
from ..table import Row, Table, build
from ..transfer import transfer
from .deis import exponential_adams
from .first_order import SigmaStart

__all__ = ["GradientEstimationScheduler", "IPNDMScheduler", "PNDMScheduler"]

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Weights for an even grid by the number of predictions at hand, newest first."""


def plms(levels: Levels, max_order: int = 4) -> Table:
    """Pseudo linear multistep: the Adams-Bashforth mean of the last four eps, carried over by a DDIM step.

    Order 2, however many predictions: the mean is right for steps of equal length in sigma / alpha, which no grid has
    (where they are equal, this is Adams-Bashforth of order 4, and LMS). 1 call a step. Other names: PLMS, PNDM with
    `skip_prk_steps`; iPNDM, whose Euler step in sigma / alpha is PNDM's transfer, so that their rows are the same.
    Source: Liu et al. 2022, arXiv 2202.09778, eq. 12 with its transfer, eq. 11; Zhang & Chen 2023, arXiv 2204.13902
    (iPNDM). The first calls use the lower Adams-Bashforth orders, so there is no extra call as in Diffusers'
    PNDMScheduler.
    """
    levels, rows = levels.with_signal(), []
    for i in range(len(levels) - 1):
        a, b = transfer(levels, i, "eps")
        rows.append(Row(a, tuple(b * w for w in ADAMS_BASHFORTH[min(i, max_order - 1)])))
    return build(levels, rows, "eps")


def pndm(levels: Levels) -> Table:
    """PLMS started by pseudo Runge-Kutta steps of four calls, Simpson's mean of eps carried over by DDIM steps.

    Order 2, as PLMS; 4 calls a starting step, whose middle lies half-way in t and not where Simpson's rule in
    sigma / alpha has its node, then 1. PLMS reads the first prediction of each starting step. Other names: PNDM,
    F-PNDM. Source: Liu et al. 2022, arXiv 2202.09778, eq. 11-13 and algorithm 2.
    """
    starts: list[int] = []

    def step(levels: Levels, i: int, size: int) -> list[Row]:
        starts.append(i)
        a, whole = transfer(levels, i, "eps", j=i + size)
        if size == 4:
            half, part = transfer(levels, i, "eps", j=i + 1)
            simpson = tuple(whole * w for w in (1 / 6, 1 / 3, 1 / 3, 1 / 6))
            stages = (half, (part,)), (half, (0.0, part)), (a, (0.0, 0.0, whole)), (a, simpson)
            return chain([Stage(*stage) for stage in stages])
        weights = [0.0] * (i - starts[-4:][0] + 1)
        for at, weight in zip(starts[:-5:-1], ADAMS_BASHFORTH[min(len(starts), 4) - 1], strict=True):
            weights[i - at] = whole * weight
        return [Row(a, tuple(weights))]

    return multistage(levels, step, "eps")


def gradient_estimation(levels: Levels, gamma: float = 2.0) -> Table:
    """DDIM with eps overdrawn away from the last one: gamma eps_i + (1 - gamma) eps_{i-1}.

    Order 1, 1 call a step; at gamma = 3/2 it is second-order Adams-Bashforth, at 1 DDIM. Source: Permenter & Yuan 2024,
    arXiv 2306.04848, section 5, which takes gamma = 2.
    """
    levels, rows = levels.with_signal(), []
    for i in range(len(levels) - 1):
        a, b = transfer(levels, i, "eps")
        rows.append(Row(a, (b * gamma, b * (1 - gamma)) if i else (b,)))
    return build(levels, rows, "eps")


class PNDMScheduler(MultiCallScheduler):
    """PNDM with its Runge-Kutta start, or without it as Stable Diffusion uses it; see `pndm` and `plms`.

    Order 2, 1 call a step; 4 calls in each of the three steps of the start. Source: arXiv 2202.09778, eq. 12 and
    alg. 2.

    Args:
        skip_prk_steps: leave out the Runge-Kutta start, which is PLMS.
        set_alpha_to_one: end clean; False ends at t = 0's level.
    """

    skip_prk_steps: bool = False
    set_alpha_to_one: bool = False
    timestep_spacing: str = "leading"

    def _end(self) -> Levels:
        return ZERO if self.config["set_alpha_to_one"] else self._least_noise()

    def _nodes(self, steps: Levels, i: int, size: int) -> Levels:
        middle = self.schedule.at([self.schedule.time(steps[i : i + 2]).mean()])
        if not steps.lam[i] < middle.lam[0] < steps.lam[i + 1]:  # beyond the trained range, where t stands still
            middle = between(self.schedule, steps, i, [0.5])
        return middle.then(middle).then(steps[i + 1 : i + 2])

    def _starts(self, room: int) -> int:
        """Runge-Kutta steps where there is room for so many: up to three."""
        return 0 if self.config["skip_prk_steps"] else min(3, max(0, room))

    def _place(self, calls: int) -> Levels:
        """As many starting steps as leave a plain one: from 13 calls on, three."""
        starts = self._starts((calls - 1) // 4)
        steps = self._grid_levels(calls - 3 * starts)
        if steps.alpha[0] == 0:
            starts = self._starts((calls - 2) // 4)
            steps = self._grid_levels(calls - 3 * starts)
        return self._starting(steps, starts)

    def _explicit_stages(self, levels: Levels) -> Levels:
        return self._starting(levels, self._starts(len(levels) - 2 - int(levels.alpha[0] == 0)))

    def _starting(self, steps: Levels, starts: int) -> Levels:
        """`starts` Runge-Kutta steps, from the first step on or, at zero terminal SNR, the second."""
        if not starts:
            return steps
        head = [1] if steps.alpha[0] == 0 else []
        return with_nodes(steps, [*head, *[4] * starts, *[1] * (len(steps) - 1 - len(head) - starts)], self._nodes)

    def _table(self, levels: Levels, eta: float) -> Table:
        return plms(levels) if levels.stage is None else pndm(levels)

    # ---- Diffusers' names --------------------------------------------------------------------------------------------

    pndm_order: ClassVar[int] = 4
    """Predictions that a step weighs."""

    @property
    def prk_timesteps(self) -> torch.Tensor:
        """Those of the announced run's Runge-Kutta start, `(calls,)`."""
        return self.timesteps[: self._start_calls()]

    @property
    def plms_timesteps(self) -> torch.Tensor:
        """Those of the announced run's calls after its start, `(calls,)`."""
        return self.timesteps[self._start_calls() :]

    def _start_calls(self) -> int:
        stage = self._announced("prk_timesteps").levels.stage
        return 0 if stage is None or not stage.any() else int(np.flatnonzero(stage)[-1]) + 1

    def step_prk(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, return_dict: bool = True
    ) -> StepOutput | Any:
        """`step`, which knows by the timestep which kind of call it is; once a run is announced."""
        self._announced("step_prk()")
        return self.step(model_output, timestep, sample, return_dict=return_dict)

    def step_plms(
        self, model_output: torch.Tensor, timestep: Any, sample: torch.Tensor, return_dict: bool = True
    ) -> StepOutput | Any:
        """`step`, which knows by the timestep which kind of call it is; once a run is announced."""
        self._announced("step_plms()")
        return self.step(model_output, timestep, sample, return_dict=return_dict)


class IPNDMScheduler(TableScheduler):
    """iPNDM on the model's own noise schedule, with fixed weights (see `plms`) or variable-step ones.

    Order 2 with fixed weights, 4 with variable-step ones; 1 call a step. Source: arXiv 2204.13902.

    Args:
        max_order: the most predictions used, 1 to 4.
        variable_step: iPNDM-v: weights for the steps as they are, which makes it LMS, see `deis.exponential_adams`. Its
            authors' code (zju-pi/diff-sampler, taken over by ComfyUI) has three slips in them: of order 2 with three
            predictions, and with four, weights that do not sum to 1 where steps differ.
    """

    max_order: int = 4
    variable_step: bool = False

    _closed_grid: ClassVar[bool] = False

    def _setup(self) -> None:
        super()._setup()
        self._choice("max_order", (1, 2, 3, 4))

    def _table(self, levels: Levels, eta: float) -> Table:
        order = self.config["max_order"]
        return exponential_adams(levels, order, "rho") if self.config["variable_step"] else plms(levels, order)


class GradientEstimationScheduler(SigmaStart):
    """Gradient estimation; see `gradient_estimation`.

    Order 1, 1 call a step. Source: arXiv 2306.04848, section 5.

    Args:
        gamma: weight of the newest eps, 0 to 4; 1 is DDIM.
    """

    gamma: float = 2.0

    _ranges = (("gamma", 0, 4),)

    def _table(self, levels: Levels, eta: float) -> Table:
        return gradient_estimation(levels, self.config["gamma"])


_PNDM, _DEIS = "arXiv 2202.09778", "arXiv 2204.13902"

SAMPLERS = (
    SamplerInfo(
        "plms",
        PNDMScheduler,
        2,
        f"{_PNDM}, eq. 12",
        ("pseudo linear multistep", "pndm plms"),
        options={"skip_prk_steps": True},
        note="no extra call",
    ),
    SamplerInfo(
        "pndm",
        PNDMScheduler,
        2,
        f"{_PNDM}, alg. 2",
        ("f-pndm", "pndm prk"),
        calls="4, then 1",
        options={"skip_prk_steps": False},
        note="the first 12 calls make three steps",
    ),
    SamplerInfo("ipndm", IPNDMScheduler, 2, _DEIS, note="the rows of plms; ends clean"),
    SamplerInfo(
        "ipndm-v",
        IPNDMScheduler,
        4,
        _DEIS,
        ("ipndm v", "ipndmv"),
        options={"variable_step": True},
        note="the rows of lms",
    ),
    SamplerInfo(
        "gradient estimation",
        GradientEstimationScheduler,
        1,
        "arXiv 2306.04848, section 5",
        ("gradient-estimation",),
    ),
)
