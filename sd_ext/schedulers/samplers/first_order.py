"""DDIM, Euler and their ancestral forms: one prediction, held fixed over the step."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch

from ...declared import Unbounded
from ...errors import InputError
from ..base import TableScheduler
from ..info import SamplerInfo
from ..plan import StepOutput
from ..schedule import Levels
from ..table import Basis, Preserves, Row, Table, build
from ..transfer import fresh_noise, transfer
from .churn import added_noise, churned, keeps, raised_calls

__all__ = ["DDIMScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"]


def first_order(levels: Levels, eta: float = 0.0, basis: Basis = "x0", preserves: Preserves = "marginal") -> Table:
    """DDIM, Euler and, with `eta` > 0, their ancestral forms.

    Keeping only part of the old noise and drawing the rest anew gives DDIM's eta; at eta = 1 this is the posterior
    q(x_s | x_t, x0) of DDPM and k-diffusion's ancestral step.

    Order 1 (deterministic at eta = 0), 1 call a step. Other names: DDIM, Euler, DPM-Solver-1; at eta = 1 DDPM
    (fixed_small), Euler a. Source: arXiv 2010.02502, eq. 12 and 16.

    Args:
        levels: n + 1 levels, the end included.
        eta: share of the posterior's standard deviation drawn afresh, at most what the level can hold.
        preserves: see `Table`.
    """
    rows = []
    for i in range(len(levels) - 1):
        std = fresh_noise(levels, i, eta)
        a, b = transfer(levels, i, basis, std)
        rows.append(Row(a, (b,), noise=std))
    return build(levels, rows, basis, preserves)


def flow_ancestral(levels: Levels, eta: float = 1.0) -> Table:
    """Euler a with the noise that ComfyUI takes for flow matching: in the flow's sigma s, eta = 1 goes down to s'^2 / s
    and adds noise up to s', where the posterior of `first_order` keeps (1 - s) / (1 - s') of that.

    Order 1 (deterministic at eta = 0), 1 call a step. Other names: euler_ancestral_RF. Source: ComfyUI; there is no
    paper.

    Args:
        levels: n + 1 levels, the end included.
        eta: 0, Euler's method, to 1.
    """
    rows, total = [], levels.alpha + levels.sigma
    s = levels.sigma / total
    for i in range(len(levels) - 1):
        down = s[i + 1] * (1 + (s[i + 1] / s[i] - 1) * eta)
        kept = down * (1 - s[i + 1]) / (1 - down)
        std = float(np.sqrt(max(0.0, s[i + 1] ** 2 - kept**2)) * total[i + 1]) if eta else 0.0
        a, b = transfer(levels, i, "x0", std)
        rows.append(Row(a, (b,), noise=std))
    return build(levels, rows, "x0")


def euler(levels: Levels, s_noise: float = 1.0) -> Table:
    """Euler's method in sigma / alpha, on raised levels with churn: each step lands below the next call's level and
    adds the noise up to it.

    Order 1, 1 call a step. Source: arXiv 2206.00364, algorithm 2 without its correction. Diffusers adds the noise after
    the network was evaluated, with the timestep of the level below.

    Args:
        s_noise: factor on the added noise; other than 1 it leaves the levels.
    """
    rows = []
    for i, std in enumerate(added_noise(levels)[1:].tolist()):
        a, b = transfer(levels, i, "x0", std)
        rows.append(Row(a, (b,), noise=std * s_noise))
    return build(levels, rows, "x0", keeps(s_noise))


class DDIMScheduler(TableScheduler):
    """DDIM; see `first_order`.

    Order 1, 1 call a step. Source: arXiv 2010.02502, eq. 12.

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
        return super()._end() if self.config["set_alpha_to_one"] else self._least_noise()

    def _table(self, levels: Levels, eta: float) -> Table:
        return first_order(levels, eta or self.config["eta"])

    def _get_variance(self, timestep: int, prev_timestep: int) -> torch.Tensor:
        """The variance of the posterior of one step, by the name that trainers by reward know it by (arXiv
        2010.02502, eq. 16, with eta = 1).

        Args:
            timestep, prev_timestep: where the step begins and ends; below 0 is the run's end.
        """
        end = self.schedule.at([prev_timestep]) if prev_timestep >= 0 else self._end()
        return torch.tensor(fresh_noise(self.schedule.at([timestep]).then(end), 0, 1.0) ** 2, dtype=torch.float32)

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
    ) -> StepOutput | Any:
        """As `TableScheduler.step`, in Diffusers' DDIM order; `eta` of the run's first call holds for the run."""
        return self._step(model_output, timestep, sample, generator, variance_noise, return_dict, eta)


class SigmaStart(TableScheduler):
    """What Diffusers' k-diffusion family shares: fractional "linspace" timesteps, and a start of sigma N(0, I)."""

    _whole_linspace: ClassVar[bool] = False

    @property
    def init_noise_sigma(self) -> torch.Tensor:
        """sigma at the start, as Diffusers has it for grids other than "leading" (k-diffusion's sigma_max N(0, I)), a
        tensor without dimensions on the processor.
        """
        plan = self._plan
        if self.config["timestep_spacing"] == "leading":
            return torch.tensor(1.0)
        return torch.tensor(float(plan.levels.sigma[0] if plan else self.schedule.sigma[-1]))


class ChurnScheduler(SigmaStart):
    """Base of schedulers with churn (arXiv 2206.00364, algorithm 2).

    Args:
        s_churn: how much noise is added back over the run; each step goes up by min(s_churn / steps, sqrt(2) - 1).
        s_tmin, s_tmax: sigma / alpha between which noise is added back.
        s_noise: factor on that noise; other than 1 it leaves the levels.
    """

    s_churn: float = 0.0
    s_tmin: float = 0.0
    s_tmax: Unbounded = math.inf
    s_noise: float = 1.0

    def _setup(self) -> None:
        super()._setup()
        for name in ("s_churn", "s_tmin", "s_tmax", "s_noise"):
            self._within(name, 0, math.inf)

    def _churned(self, steps: Levels) -> Levels:
        return churned(self.schedule, steps, *(self.config[name] for name in ("s_churn", "s_tmin", "s_tmax")))

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        s_churn: float | None = None,
        s_tmin: float | None = None,
        s_tmax: float | None = None,
        s_noise: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> StepOutput | Any:
        """As `TableScheduler.step`, in the order of Diffusers' Euler.

        Args:
            s_churn, s_tmin, s_tmax, s_noise: what the config has, or None. The timesteps depend on them, so they must
                be known when the run is announced.
        """
        for name, value in (("s_churn", s_churn), ("s_tmin", s_tmin), ("s_tmax", s_tmax), ("s_noise", s_noise)):
            if value is not None and (value != self.config[name] or isinstance(value, bool)):
                raise InputError(
                    f"step({name}={value!r}) differs from the config's {self.config[name]!r}; churn moves the "
                    f"timesteps: make the scheduler with {name}={value!r}"
                )
        return self._step(model_output, timestep, sample, generator, variance_noise, return_dict)


class EulerDiscreteScheduler(ChurnScheduler):
    """Euler's method in sigma / alpha, the same step as DDIM on its own grid, and with churn; see `euler`.

    Order 1, 1 call a step. Source: arXiv 2206.00364, alg. 1; with churn alg. 2, with fresh noise.

    Args:
        interpolation_type: "linear". Diffusers' "log_linear" is a grid of its own, whose timesteps are not those of its
            sigmas; `use_exponential_sigmas` is that grid with timesteps that are.
        s_churn, s_tmin, s_tmax, s_noise: see `ChurnScheduler`.
    """

    interpolation_type: str = "linear"

    def _setup(self) -> None:
        super()._setup()
        if self.config["interpolation_type"] == "log_linear":
            raise InputError(
                f"{type(self).__name__}: interpolation_type='log_linear' tells the network timesteps that are not "
                "those of its sigmas; use_exponential_sigmas=True is the same grid with those that are"
            )
        self._choice("interpolation_type", ("linear",))

    def _place(self, calls: int) -> Levels:
        return self._explicit_stages(self._grid_levels(calls))

    def _explicit_stages(self, levels: Levels) -> Levels:
        if not self.config["s_churn"]:
            return levels
        return raised_calls(self._churned(levels), levels, [1] * (len(levels) - 1))

    def _table(self, levels: Levels, eta: float) -> Table:
        return euler(levels, self.config["s_noise"])


class EulerAncestralDiscreteScheduler(SigmaStart):
    """Euler a: `first_order` with eta = 1.

    Order 1, 1 call a step, with fresh noise. Source: arXiv 2010.02502, eq. 16.

    Args:
        eta: share of the ancestral noise.
        flow_noise: as much noise as ComfyUI takes for flow matching; see `flow_ancestral`. eta is then at most 1.
    """

    eta: float = 1.0
    flow_noise: bool = False

    def _setup(self) -> None:
        super()._setup()
        if self.config["flow_noise"]:
            self._within("eta", 0, 1)

    def _table(self, levels: Levels, eta: float) -> Table:
        return (flow_ancestral if self.config["flow_noise"] else first_order)(levels, self.config["eta"])


SAMPLERS = (
    SamplerInfo("ddim", DDIMScheduler, 1, "arXiv 2010.02502, eq. 12", note="eta=1 is ancestral"),
    SamplerInfo("euler", EulerDiscreteScheduler, 1, "arXiv 2206.00364, alg. 1", note="the step of DDIM"),
    SamplerInfo(
        "euler churn",
        EulerDiscreteScheduler,
        1,
        "arXiv 2206.00364, alg. 2",
        ("euler with churn",),
        stochastic=True,
        options={"s_churn": 5.0},
        note="adds noise back before each call",
    ),
    SamplerInfo(
        "euler a",
        EulerAncestralDiscreteScheduler,
        1,
        "arXiv 2010.02502, eq. 16 with eta = 1",
        ("euler ancestral",),
        stochastic=True,
    ),
    SamplerInfo(
        "euler a rf",
        EulerAncestralDiscreteScheduler,
        1,
        "ComfyUI",
        ("euler ancestral rf",),
        stochastic=True,
        options={"flow_noise": True},
        note="the noise that ComfyUI takes for flow matching",
    ),
)
