"""DDIM, Euler and their ancestral forms: one prediction, held fixed over the step."""

from __future__ import annotations

from typing import ClassVar

import torch

from ..base import TableScheduler
from ..info import SamplerInfo
from ..plan import StepOutput
from ..schedule import Levels
from ..table import Basis, Row, Table, build
from ..transfer import fresh_noise, transfer


def first_order(levels: Levels, eta: float = 0.0, basis: Basis = "x0") -> Table:
    """DDIM, Euler and, with `eta` > 0, their ancestral forms.

    Keeping only part of the old noise and drawing the rest anew gives DDIM's eta; at eta = 1 this is the posterior
    q(x_s | x_t, x0) of DDPM and k-diffusion's ancestral step.

    Order 1 (deterministic at eta = 0), 1 call a step. Other names: DDIM, Euler, DPM-Solver-1; at eta = 1 DDPM
    (fixed_small), Euler a. Source: arXiv 2010.02502, eq. 12 and 16.

    Args:
        levels: n + 1 levels, the end included.
        eta: share of the posterior's standard deviation drawn afresh, at most what the level can hold.
    """
    rows = []
    for i in range(len(levels) - 1):
        std = fresh_noise(levels, i, eta)
        a, b = transfer(levels, i, basis, std)
        rows.append(Row(a, (b,), noise=std))
    return build(levels, rows, basis)


class DDIMScheduler(TableScheduler):
    """DDIM; see `first_order`.

    Clipping and thresholding change x0, and eps is taken anew from the changed x0 (`use_clipped_model_output` of
    Diffusers), so that x stays on its level.

    Args:
        eta: share of the posterior's noise, 0 deterministic to 1 DDPM; a non-zero `step(eta=...)` goes before it.
        set_alpha_to_one: end clean; False ends at t = 0's level, as Stable Diffusion does.
    """

    eta: float = 0.0
    set_alpha_to_one: bool = True
    timestep_spacing: str = "leading"
    clip_sample: bool = True

    def _end(self) -> Levels:
        return super()._end() if self.config["set_alpha_to_one"] else self.schedule.at([0.0])

    def _table(self, levels: Levels, eta: float) -> Table:
        return first_order(levels, eta or self.config["eta"])

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = True,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[torch.Tensor]:
        """As `TableScheduler.step`, in Diffusers' DDIM order; `eta` of the run's first call holds for the run."""
        return self._step(model_output, timestep, sample, generator, variance_noise, return_dict, eta)


class SigmaStart(TableScheduler):
    """What Diffusers' k-diffusion family shares: fractional "linspace" timesteps, and a start of sigma N(0, I)."""

    _whole_linspace: ClassVar[bool] = False

    @property
    def init_noise_sigma(self) -> float:
        """sigma at the start, as Diffusers has it for grids other than "leading" (k-diffusion's sigma_max N(0, I))."""
        plan = self._plan
        if self.config["timestep_spacing"] == "leading":
            return 1.0
        return float(plan.levels.sigma[0] if plan else self.schedule.sigma[-1])


class EulerDiscreteScheduler(SigmaStart):
    """Euler's method in sigma / alpha, the same step as DDIM on its own grid; see `first_order`."""

    def _table(self, levels: Levels, eta: float) -> Table:
        return first_order(levels)


class EulerAncestralDiscreteScheduler(SigmaStart):
    """Euler a: `first_order` with eta = 1.

    Args:
        eta: share of the ancestral noise.
    """

    eta: float = 1.0

    def _table(self, levels: Levels, eta: float) -> Table:
        return first_order(levels, self.config["eta"])


SAMPLERS = (
    SamplerInfo("ddim", DDIMScheduler, 1, "arXiv 2010.02502, eq. 12", note="eta=1 is ancestral"),
    SamplerInfo("euler", EulerDiscreteScheduler, 1, "arXiv 2206.00364, alg. 1", note="the step of DDIM"),
    SamplerInfo(
        "euler a",
        EulerAncestralDiscreteScheduler,
        1,
        "arXiv 2010.02502, eq. 16 with eta = 1",
        ("euler ancestral",),
        stochastic=True,
    ),
)
