"""Consistency models: the network jumps to x0 at once, noise is added back, and it jumps again. LCM and TCD."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...declared import Unbounded
from ...errors import InputError
from .. import placement
from ..base import TableScheduler
from ..info import SamplerInfo
from ..plan import StepOutput
from ..schedule import Array, Levels
from ..table import Row, Table, build
from ..transfer import transfer

__all__ = ["LCMScheduler", "TCDScheduler"]

SIGMA_DATA = 0.5


def boundary(t: float, timestep_scaling: float) -> tuple[float, float]:
    """(c_skip, c_out) of the consistency function f = c_skip x + c_out x0, which is x at t = 0 (arXiv 2303.01469,
    eq. 5, with the scaled timesteps of LCM, arXiv 2310.04378).
    """
    if math.isinf(timestep_scaling):
        return 0.0, 1.0
    scaled = t * timestep_scaling
    return SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2), scaled / math.hypot(scaled, SIGMA_DATA)


def lcm(levels: Levels, timestep_scaling: float = math.inf) -> Table:
    """Multistep consistency sampling: to x0, and afresh to the next level.

    No order: it is exact at any number of calls if the network is the consistency function, and else not at all; 1 call
    a step. Other names: LCM, "stochastic sampling" of flow matching. Source: Luo et al. 2023, arXiv 2310.04378,
    multistep latent consistency sampling.

    Args:
        timestep_scaling: of the boundary condition, see `boundary`; inf leaves it out. With it tables hold no
            invariant: x0 and x are mixed by c_out + c_skip, which is not 1, by 3.5e-6 at LCM's last trained timestep.
    """
    rows = []
    for i in range(len(levels) - 1):
        skip, out = boundary(levels.t[i], timestep_scaling)
        alpha = levels.alpha[i + 1]
        rows.append(Row(alpha * skip, (alpha * out,), noise=levels.sigma[i + 1]))
    return build(levels, rows, "x0", "marginal" if math.isinf(timestep_scaling) else "nothing")


def tcd(levels: Levels, kept: Array) -> Table:
    """Trajectory consistency: along the ODE to a level below the next one, then noise up to that.

    No order: it is exact if the network's jumps are, and else not at all; 1 call a step. With nothing below it is
    DDIM, and with x0 below it is LCM. Source: Zheng et al. 2024, arXiv 2402.19159, strategic stochastic sampling.

    Args:
        kept: `(n,)`, the sigma / alpha each call jumps to; at most that of the next level.
    """
    rows = []
    for i, ratio in enumerate(kept):
        j = i + 1
        share = ratio / levels.ratio[j] if levels.sigma[j] else 1.0
        std = float(levels.sigma[j]) * math.sqrt(max(0.0, 1 - share**2))
        a, b = transfer(levels, i, "x0", std)
        rows.append(Row(a, (b,), noise=std))
    return build(levels, rows, "x0")


class ConsistencyScheduler(TableScheduler):
    """Base of LCM and TCD: the timesteps of their distillation.

    Args:
        original_inference_steps: steps of the distillation's grid, of which a run takes a part. A run of more calls
            takes its timesteps from all trained ones.
        set_alpha_to_one: end clean; False ends at t = 0's level.
        timestep_scaling: of LCM's boundary condition.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    timestep_spacing: str = "leading"
    original_inference_steps: int = 50
    set_alpha_to_one: bool = True
    timestep_scaling: Unbounded = 10.0

    def _end(self) -> Levels:
        return super()._end() if self.config["set_alpha_to_one"] else self._least_noise()

    def _setup(self) -> None:
        super()._setup()
        if self._of_betas:
            self._check_original(self.config["original_inference_steps"])

    @property
    def _of_betas(self) -> bool:
        """Whether the model has betas, as the distilled ones have; others have steps of their own."""
        return self.schedule.kind == "betas"

    def _check_original(self, steps: int) -> None:
        most = self.config["num_train_timesteps"]
        if isinstance(steps, bool) or int(steps) != steps or not 1 <= steps <= most:
            raise InputError(
                f"{type(self).__name__}: original_inference_steps must be 1 to {most} (num_train_timesteps), "
                f"got {steps!r}"
            )

    def _own_timesteps(self, calls: int, original: int | None, strength: float) -> Array:
        """Every so many of the distillation's timesteps, from the noisiest below `strength` on."""
        trained = self.config["num_train_timesteps"]
        steps = self.config["original_inference_steps"] if original is None else original
        if original is None and calls > steps:
            steps = trained
        known = (np.arange(1, int(steps * strength) + 1) * (trained // steps))[::-1] - 1
        if len(known) < calls:
            raise InputError(
                f"{calls} calls are more than the {len(known)} timesteps that original_inference_steps={steps} has "
                f"within strength {strength:g}"
            )
        return known[np.floor(np.arange(calls) * (len(known) / calls)).astype(int)].astype(float)

    def _place(self, calls: int) -> Levels:
        return self._shortened(calls, None, 1.0)

    def _shortened(self, calls: int, original: int | None, strength: float) -> Levels:
        own = placement.chosen_grid(self.config) is None and self._of_betas
        if own:
            return placement.from_timesteps(self.schedule, self._own_timesteps(calls, original, strength), self._end())
        if strength != 1 or original is not None:
            grid = placement.chosen_grid(self.config)
            asks = "the process" if grid is None else f"the config asks for the grid {grid!r}, which"
            raise InputError(
                f"{type(self).__name__}: strength and original_inference_steps belong to its own timesteps of models "
                f"with betas; {asks} has others"
            )
        return self._grid_levels(calls)

    def set_timesteps(  # type: ignore[override]
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        original_inference_steps: int | None = None,
        timesteps: Sequence[float] | None = None,
        strength: float = 1.0,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """As `TableScheduler.set_timesteps`, in Diffusers' order.

        Args:
            original_inference_steps: goes before the config's.
            strength: share of the timesteps to use, from the clean end (image-to-image): the distillation's, of which a
                run of `num_inference_steps` then takes its own; or the last of the `timesteps` or `sigmas` given.

        Raises:
            InputError: as there, and for more calls than there are timesteps within `strength`.
        """
        if not 0 < strength <= 1:
            raise InputError(f"strength must be above 0 and at most 1, got {strength!r}")
        if original_inference_steps is not None:
            self._check_original(original_inference_steps)
        if num_inference_steps is None or (strength == 1 and original_inference_steps is None):
            timesteps, sigmas = (v if v is None else _last(v, strength) for v in (timesteps, sigmas))
            super().set_timesteps(num_inference_steps, device, timesteps, sigmas, mu)
            return
        if timesteps is not None or sigmas is not None:
            raise InputError("pass exactly one of num_inference_steps, timesteps and sigmas")
        if int(num_inference_steps) != num_inference_steps or num_inference_steps < 1:
            raise InputError(f"num_inference_steps must be a whole number from 1, got {num_inference_steps!r}")
        self.announce(self._shortened(int(num_inference_steps), original_inference_steps, strength), device)


def _last(values: Sequence[float], strength: float) -> Sequence[float]:
    return values[len(values) - max(1, int(len(values) * strength)) :]


class LCMScheduler(ConsistencyScheduler):
    """Latent consistency models; see `lcm`.

    No order of convergence, 1 call a step, with fresh noise. Source: arXiv 2310.04378.

    On its own timesteps it is Diffusers' LCM. Other grids are allowed; those that reach t = 0 waste their last call,
    where the boundary condition returns x.

    Args:
        original_inference_steps: see `ConsistencyScheduler`.
        set_alpha_to_one: has no effect, as in Diffusers: the last call gives its x0 as it is.
        timestep_scaling: of the boundary condition; inf leaves it out.
    """

    def _end(self) -> Levels:
        return TableScheduler._end(self)

    def _setup(self) -> None:
        super()._setup()
        if not self.config["timestep_scaling"] > 0:
            raise InputError(
                f"LCMScheduler: timestep_scaling must be positive, got {self.config['timestep_scaling']!r}"
            )

    def _table(self, levels: Levels, eta: float) -> Table:
        return lcm(levels, self._scaling)

    @property
    def _scaling(self) -> float:
        """Other models than those with betas have no boundary condition in their timestep."""
        return self.config["timestep_scaling"] if self._of_betas else math.inf

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> StepOutput | Any:
        """As `TableScheduler.step`; the output also has `denoised`, the consistency function's value, and so has the
        tuple `(prev_sample, denoised)`, as Diffusers' pipelines for LCM expect.
        """
        output = self._step(model_output, timestep, sample, generator, variance_noise, True)
        assert isinstance(output, StepOutput) and output.made
        run, _, x, _, dtype = output.made
        skip, out = boundary(float(run.table.levels.t[run.position - 1]), self._scaling)
        denoised = (out * output.pred_original_sample + skip * x).to(dtype)
        if not return_dict:
            return output.prev_sample, denoised
        output.denoised = denoised  # type: ignore[attr-defined]
        return output


class TCDScheduler(ConsistencyScheduler):
    """Trajectory consistency distillation; see `tcd`.

    No order of convergence, 1 call a step, with fresh noise unless eta is 0. Source: arXiv 2402.19159; target-driven
    distillation, which takes the same step: arXiv 2409.01347.

    Args:
        original_inference_steps: see `ConsistencyScheduler`; given to `set_timesteps` it allows all trained timesteps.
        set_alpha_to_one: end clean; False ends at t = 0's level.
        timestep_scaling: has no effect, as in Diffusers.
        eta: the paper's gamma: each call jumps to (1 - eta) of the next timestep. 0 is DDIM, 1 jumps to t = 0. A
            non-zero `step(eta=...)` of the run's first call goes before it; pipelines pass 0 unless told otherwise.
    """

    eta: float = 0.3

    _ranges = (("eta", 0, 1),)

    def _own_timesteps(self, calls: int, original: int | None, strength: float) -> Array:
        return super()._own_timesteps(calls, self.config["num_train_timesteps"] if original else None, strength)

    def _table(self, levels: Levels, eta: float) -> Table:
        eta = eta or self.config["eta"]
        if not 0 <= eta <= 1:
            raise InputError(f"TCDScheduler: eta must be 0 to 1, got {eta!r}")
        if not eta:
            return tcd(levels, levels.ratio[1:])
        below = self.schedule.at(np.floor((1 - eta) * self.schedule.time(levels[1:])))
        return tcd(levels, np.minimum(below.ratio, levels.ratio[1:]))

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        eta: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> StepOutput | Any:
        """As `TableScheduler.step`, in Diffusers' order; `eta` of the run's first call holds for the run."""
        return self._step(model_output, timestep, sample, generator, variance_noise, return_dict, eta or 0.0)


SAMPLERS = (
    SamplerInfo(
        "lcm",
        LCMScheduler,
        None,
        "arXiv 2310.04378",
        ("latent consistency",),
        stochastic=True,
        note="for models distilled with LCM (LCM-LoRA); 1 to 8 calls",
    ),
    SamplerInfo(
        "tcd",
        TCDScheduler,
        None,
        "arXiv 2402.19159",
        ("trajectory consistency",),
        stochastic=True,
        options={"set_alpha_to_one": True},  # what Stable Diffusion's configs say of it is about DDIM
        note="for models distilled with TCD; eta is the paper's gamma",
    ),
    SamplerInfo(
        "tdd",
        TCDScheduler,
        None,
        "arXiv 2409.01347",
        ("target-driven distillation",),
        stochastic=True,
        options={"set_alpha_to_one": True, "original_inference_steps": 250, "eta": 0.2},
        note="for models distilled with TDD: TCD's step, on every fourth timestep",
    ),
)
