"""The scheduler classes, under Diffusers' names where the sampler is the same.

Each states its options beside those every scheduler has (see `TableScheduler`), with Diffusers' defaults, and names the
function that writes its table.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from ..errors import InputError
from .base import TableScheduler
from .ddpm import ddpm, variance_range
from .dpm_solver import basis_of, multistep, singlestep, singlestep_stages
from .first_order import first_order
from .multistage import heun, heun_levels
from .plan import StepOutput
from .pndm import plms
from .run import Run
from .schedule import ZERO, Levels
from .table import Table


def _choice(scheduler: TableScheduler, name: str, allowed: tuple[Any, ...]) -> None:
    if scheduler.config[name] not in allowed:
        raise InputError(f"{type(scheduler).__name__}: {name} must be one of {allowed}, got {scheduler.config[name]!r}")


class DDPMScheduler(TableScheduler):
    """DDPM's ancestral sampling; see `ddpm.ddpm`.

    Args:
        variance_type: "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range".
    """

    variance_type: str = "fixed_small"
    timestep_spacing: str = "leading"
    clip_sample: bool = True

    def _setup(self) -> None:
        super()._setup()
        fixed = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log")
        _choice(self, "variance_type", (*fixed, "learned", "learned_range"))

    def _table(self, levels: Levels, eta: float) -> Table:
        return ddpm(levels, self.config["variance_type"])

    def _noise(self, x: torch.Tensor, extra: torch.Tensor | None, run: Run, *source: Any) -> torch.Tensor:
        noise, kind = super()._noise(x, extra, run, *source), self.config["variance_type"]
        if not kind.startswith("learned"):
            return noise
        if extra is None:
            raise InputError(f"variance_type {kind!r} needs a network with twice the latent's channels")
        if kind == "learned":
            return noise * extra.to(noise.dtype).sqrt()
        ((small, large),) = variance_range(run.table.levels[run.position : run.position + 2]).tolist()
        share = (extra.to(noise.dtype) + 1) / 2
        return noise * torch.exp(0.5 * (small + (large - small) * share))


class DDIMScheduler(TableScheduler):
    """DDIM; see `first_order.first_order`.

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


class PNDMScheduler(TableScheduler):
    """PLMS, that is PNDM with `skip_prk_steps` as Stable Diffusion uses it; see `pndm.plms`.

    Args:
        skip_prk_steps: must be True: the Runge-Kutta start is a different sampler.
        set_alpha_to_one: end clean; False ends at t = 0's level.
    """

    skip_prk_steps: bool = True
    set_alpha_to_one: bool = False
    timestep_spacing: str = "leading"

    def _setup(self) -> None:
        super()._setup()
        _choice(self, "skip_prk_steps", (True,))

    def _end(self) -> Levels:
        return ZERO if self.config["set_alpha_to_one"] else self.schedule.at([0.0])

    def _table(self, levels: Levels, eta: float) -> Table:
        return plms(levels)


class EulerDiscreteScheduler(TableScheduler):
    """Euler's method in sigma / alpha, the same step as DDIM on its own grid; see `first_order.first_order`."""

    _whole_linspace: ClassVar[bool] = False

    @property
    def init_noise_sigma(self) -> float:
        """sigma at the start, as Diffusers has it for grids other than "leading" (k-diffusion's sigma_max N(0, I))."""
        plan = self._plan
        if self.config["timestep_spacing"] == "leading":
            return 1.0
        return float(plan.levels.sigma[0] if plan else self.schedule.sigma[-1])

    def _table(self, levels: Levels, eta: float) -> Table:
        return first_order(levels)


class EulerAncestralDiscreteScheduler(EulerDiscreteScheduler):
    """Euler a: `first_order.first_order` with eta = 1.

    Args:
        eta: share of the ancestral noise.
    """

    eta: float = 1.0

    def _table(self, levels: Levels, eta: float) -> Table:
        return first_order(levels, self.config["eta"])


class HeunDiscreteScheduler(EulerDiscreteScheduler):
    """Heun's method; see `multistage.heun`. n calls make n / 2 solver steps; custom timesteps are solver steps."""

    beta_start: float = 0.00085
    beta_end: float = 0.012

    def _place(self, calls: int) -> Levels:
        return heun_levels(self._grid_levels(calls // 2 + 1), single_first=calls % 2 == 0)

    def _explicit_stages(self, levels: Levels) -> Levels:
        return heun_levels(levels)

    def _table(self, levels: Levels, eta: float) -> Table:
        return heun(levels)


class DPMSolverMultistepScheduler(TableScheduler):
    """DPM-Solver and DPM-Solver++ multistep, orders 1 to 3, and their SDE forms; see `dpm_solver.multistep`.

    Args:
        solver_order: 1, 2 or 3.
        algorithm_type: "dpmsolver++", "dpmsolver", "sde-dpmsolver++" or "sde-dpmsolver".
        solver_type: "midpoint" or "heun", for order 2.
        lower_order_final: lower the order in the last two calls of runs below 15 calls.
        euler_at_final: first order in the last call.
        exact_third_order: third order as derived, in place of the published second-order form.
    """

    solver_order: int = 2
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    exact_third_order: bool = False

    _closed_grid: ClassVar[bool] = False

    def _setup(self) -> None:
        super()._setup()
        _choice(self, "solver_order", (1, 2, 3))
        _choice(self, "algorithm_type", ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver"))
        _choice(self, "solver_type", ("midpoint", "heun"))

    def _table(self, levels: Levels, eta: float) -> Table:
        config = self.config
        return multistep(
            levels,
            config["solver_order"],
            config["algorithm_type"],
            config["solver_type"],
            exact=config["exact_third_order"],
            lower_order_final=config["lower_order_final"],
            euler_at_final=config["euler_at_final"],
        )


class DPMSolverSinglestepScheduler(TableScheduler):
    """DPM-Solver++ 2S and DPM-Solver-2; see `dpm_solver.singlestep`.

    Args:
        solver_order: 1 or 2.
        algorithm_type: "dpmsolver++" or "dpmsolver".
        solver_type: "midpoint" or "heun".
    """

    solver_order: int = 2
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"

    _closed_grid: ClassVar[bool] = False

    def _setup(self) -> None:
        super()._setup()
        _choice(self, "solver_order", (1, 2))
        _choice(self, "algorithm_type", ("dpmsolver++", "dpmsolver"))
        _choice(self, "solver_type", ("midpoint", "heun"))

    def _place(self, calls: int) -> Levels:
        return self._explicit_stages(self._grid_levels(calls))

    def _explicit_stages(self, levels: Levels) -> Levels:
        calls = len(levels) - 1
        paired = self.config["solver_order"] == 2
        return levels.with_stages(singlestep_stages(calls, levels.sigma[-1]) if paired else [0] * calls)

    def _table(self, levels: Levels, eta: float) -> Table:
        if self.config["solver_order"] == 1:
            return first_order(levels, basis=basis_of(self.config["algorithm_type"]))
        return singlestep(levels, self.config["algorithm_type"], self.config["solver_type"])
