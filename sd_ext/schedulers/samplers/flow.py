"""Flow matching, x = (1 - sigma) x0 + sigma eps: Euler and Heun in sigma, as SD3, Flux and others use them.

One class serves both kinds of model: with `prediction_type="flow_prediction"`, the default, it runs a flow model on
Diffusers' flow sigmas; with any other it runs a variance-preserving model like the other samplers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ...errors import InputError
from .. import placement
from ..base import TableScheduler
from ..grids.by_ratio import beta_ratio, exponential, karras
from ..info import SamplerInfo
from ..multistage import MultiCallScheduler, Stage, chain, multistage, step_sizes
from ..schedule import Array, Levels
from ..table import Row, Table
from .consistency import lcm
from .first_order import first_order

__all__ = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]

SPACINGS = {"use_karras_sigmas": karras, "use_exponential_sigmas": exponential, "use_beta_sigmas": beta_ratio}
"""Diffusers' flags: the flow's sigmas placed anew between their first and their last."""


def flow_heun(levels: Levels) -> Table:
    """Heun's method in the flow's sigma: the mean of the slopes dx/dsigma = eps - x0 at a step's two ends.

    Order 2, 2 calls a step (1 for a step to sigma = 0). Where `heun` averages eps over a step in sigma / alpha, this
    averages the flow's velocity, and needs no special first step at alpha = 0. On a variance-preserving model it is the
    same for x / (alpha + sigma), which is on the flow's path. Source: Diffusers' FlowMatchHeunDiscreteScheduler.
    """

    def step(levels: Levels, i: int, size: int) -> list[Row]:
        scale = levels.alpha + levels.sigma
        s, s_next = (float(levels.sigma[k] / scale[k]) for k in (i, i + size))
        end, whole = s_next / s * scale[i + size] / scale[i], scale[i + size] * (1 - s_next / s)
        if size == 1:
            return [Row(end, (whole,))]
        first = whole / 2 * (2 - s / s_next)
        return chain([Stage(end, (whole,)), Stage(end, (first, whole - first))])

    return multistage(levels, step, "x0", from_noise=True)


class FlowMatchScheduler(TableScheduler):
    """Base of the flow-matching schedulers: Diffusers' flow sigmas.

    Args:
        shift: sigma <- shift sigma / (1 + (shift - 1) sigma) (Esser et al. 2024, arXiv 2403.03206, eq. 23).
        use_dynamic_shifting: take the shift from `set_timesteps(mu=...)`, which pipelines compute from the picture's
            size by the four options that follow.
        base_shift, max_shift, base_image_seq_len, max_image_seq_len: read by pipelines.
        time_shift_type: "exponential", the shift is e^mu, or "linear", it is mu.
        shift_terminal: stretch the sigmas so that the last is this.
        invert_sigmas: not supported.
    """

    prediction_type: str = "flow_prediction"
    shift: float = 1.0
    use_dynamic_shifting: bool = False
    base_shift: float | None = 0.5
    max_shift: float | None = 1.15
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    invert_sigmas: bool = False
    shift_terminal: float | None = None
    time_shift_type: str = "exponential"

    def _setup(self) -> None:
        super()._setup()
        self._choice("time_shift_type", ("exponential", "linear"))
        self._choice("invert_sigmas", (False,))
        if not self.config["shift"] > 0:
            raise InputError(f"{type(self).__name__}: shift must be positive, got {self.config['shift']!r}")
        last = self.config["shift_terminal"]
        if last and not 0 < last < 1:
            raise InputError(f"{type(self).__name__}: shift_terminal must be between 0 and 1, got {last!r}")

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """As in Diffusers, which leaves out what has the default of the config's class; a prediction type, whose
        default differs here, is always taken over.
        """
        if isinstance(config, dict) and "prediction_type" in config:
            kwargs.setdefault("prediction_type", config["prediction_type"])
        return super().from_config(config, return_unused_kwargs, **kwargs)

    @property
    def sigmas(self) -> torch.Tensor:
        """The flow's sigmas of the announced run's calls and end, `(calls + 1,)` float32; for other models, of the base
        class.
        """
        if not self.schedule.flow:
            return super().sigmas
        plan = self._plan
        return torch.tensor(plan.levels.sigma if plan else self.schedule.sigma[::-1].copy(), dtype=torch.float32)

    # ---- placement ---------------------------------------------------------------------------------------------------

    @property
    def _fixed_shift(self) -> float:
        return self.config["shift"] * self.config["flow_shift"]

    def _shift(self) -> float:
        """The shift of the run this thread is announcing."""
        if not self.config["use_dynamic_shifting"]:
            return self._fixed_shift
        mu = getattr(self._own, "mu", None)
        if mu is None:
            raise InputError("with use_dynamic_shifting, set_timesteps needs mu (pipelines compute it)")
        return math.exp(mu) if self.config["time_shift_type"] == "exponential" else mu

    def _flow_sigmas(self, sigmas: Array) -> Array:
        """Unshifted sigmas, shifted and spaced as the config says."""
        shift, last = self._shift(), self.config["shift_terminal"]
        sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
        if last:
            sigmas = 1 - (1 - sigmas) * (1 - last) / (1 - sigmas[-1])
        for flag, spacing in SPACINGS.items():
            if self.config[flag]:
                return spacing(float(sigmas[-1]), float(sigmas[0]), len(sigmas))
        return sigmas

    def _own_sigmas(self, n: int) -> Array:
        """Even from 1 to the least trained sigma, before the shift; as in Diffusers a fixed shift moves the least one
        twice.
        """
        least, shift = 1 / self.schedule.t_max, self._fixed_shift
        if not self.config["use_dynamic_shifting"]:
            least = shift * least / (1 + (shift - 1) * least)
        return np.linspace(1.0, least, n)

    def _grid_levels(self, n: int, grid: str | None = None) -> Levels:
        if not self.schedule.flow:
            return super()._grid_levels(n, grid)
        grid = grid or self.config["grid"]
        if grid is None:
            return self._at_sigmas(self._flow_sigmas(self._own_sigmas(n)))
        config: dict[str, Any] = {**self.config, "grid": grid, "flow_shift": self._shift()}
        return placement.grid_levels(self.schedule, config, n, self._end(), closed=False, whole=False)

    def _at_sigmas(self, sigmas: Array, t: Array | None = None) -> Levels:
        return Levels(sigmas * self.schedule.t_max if t is None else t, 1 - sigmas, sigmas).then(self._end())

    def _explicit_levels(self, sigmas: Sequence[float] | None, timesteps: Sequence[float] | None) -> Levels:
        t = None if timesteps is None else placement.falling("timesteps", timesteps)
        given = placement.falling("sigmas", sigmas) if sigmas is not None else t / self.schedule.t_max  # type: ignore[operator]
        if given[-1] == 0 and len(given) > 1:
            given, t = given[:-1], t if t is None else t[: len(given) - 1]
        if given[-1] <= 0 or given[0] > 1:
            raise InputError(f"a flow's sigmas must lie above 0 and at most at 1, got {given.tolist()}")
        if t is not None and len(t) != len(given):
            raise InputError(f"{len(given)} sigmas and {len(t)} timesteps do not fit together")
        return self._at_sigmas(self._flow_sigmas(given), t)

    def set_timesteps(  # type: ignore[override]
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """Announce a run, as Diffusers' flow-matching schedulers do; for other models as `TableScheduler` does.

        Args:
            num_inference_steps: network evaluations, 1 to `num_train_timesteps`.
            device: where `timesteps` shall be.
            sigmas: the flow's sigmas of the calls, falling, above 0 (save for a last 0, which makes no call) to 1,
                before the shift.
            mu: of dynamic shifting.
            timesteps: what the network is told; without `sigmas` also where the sigmas come from, before the shift.

        Raises:
            InputError: arguments that do not fit together, or values that cannot be stepped through.
        """
        if not self.schedule.flow:
            if mu is not None:
                raise InputError(f"mu is for flow models; the config says {self.config['prediction_type']!r}")
            return super().set_timesteps(num_inference_steps, device, timesteps, sigmas)
        self._own.mu = mu
        if sigmas is None and timesteps is None:
            return super().set_timesteps(num_inference_steps, device)
        levels = self._explicit_levels(sigmas, timesteps)
        if num_inference_steps is not None and num_inference_steps != len(levels) - 1:
            raise InputError(
                f"num_inference_steps={num_inference_steps} differs from the {len(levels) - 1} values given"
            )
        self.announce(self._explicit_stages(levels), device)

    # ---- the forward process -----------------------------------------------------------------------------------------

    def scale_noise(self, sample: torch.Tensor, timestep: float | torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """(1 - sigma) sample + sigma noise, for image-to-image and inpainting.

        Args:
            sample: x0, `(batch, ...)`.
            timestep: of the announced run, `(batch,)` or one: its own sigma is taken, whatever the network is told.
                Before any run, sigma is timestep / num_train_timesteps.
            noise: same shape.

        Raises:
            InputError: a timestep that the run does not have.
        """
        times = torch.as_tensor(timestep, device="cpu").reshape(-1)
        plan = self._plan
        if plan is None or plan.implied:
            return self.add_noise(sample, noise, times)
        at = [plan.begin] if plan.begin is not None and plan.run is None else [plan.index_of(float(t)) for t in times]
        dtype = torch.float64 if sample.dtype == torch.float64 else torch.float32
        shape = (-1, *[1] * (sample.dim() - 1))
        alpha, sigma = (
            torch.tensor(v[at], dtype=dtype).to(sample.device).reshape(shape)
            for v in (plan.levels.alpha, plan.levels.sigma)
        )
        return (alpha * sample + sigma * noise).to(sample.dtype)


class FlowMatchEulerDiscreteScheduler(FlowMatchScheduler):
    """Euler's method for flow matching, which is `first_order`: the same step on every path.

    Order 1, 1 call a step. Source: arXiv 2403.03206, section 2.

    Args:
        stochastic_sampling: go to x0 and afresh to the next level, see `lcm`.
        shift, use_dynamic_shifting, base_shift, max_shift, base_image_seq_len, max_image_seq_len, time_shift_type,
            shift_terminal: see `FlowMatchScheduler`.
    """

    stochastic_sampling: bool = False

    def _table(self, levels: Levels, eta: float) -> Table:
        return lcm(levels) if self.config["stochastic_sampling"] else first_order(levels)


class FlowMatchHeunDiscreteScheduler(FlowMatchScheduler, MultiCallScheduler):
    """Heun's method for flow matching; see `flow_heun`.

    Order 2, 2 calls a step. Source: arXiv 2403.03206, section 2.

    Args:
        shift, use_dynamic_shifting, base_shift, max_shift, base_image_seq_len, max_image_seq_len, time_shift_type,
            shift_terminal: see `FlowMatchScheduler`.
    """

    def _nodes(self, steps: Levels, i: int, size: int) -> Levels:
        return steps[i + 1 : i + 2]

    def _steps(self, calls: int) -> tuple[Levels, list[int]]:
        sizes = step_sizes(calls, 2, tail=self._tail(bool(self._end().sigma[0] == 0)))
        return self._grid_levels(len(sizes)), sizes

    def _explicit_stages(self, levels: Levels) -> Levels:
        tail = self._tail(bool(levels.sigma[-1] == 0))
        return self._calls(levels, [*[2] * (len(levels) - 1 - len(tail)), *tail])

    def _table(self, levels: Levels, eta: float) -> Table:
        return flow_heun(levels)


_FLOW = "arXiv 2403.03206, section 2"

SAMPLERS = (
    SamplerInfo(
        "flow euler",
        FlowMatchEulerDiscreteScheduler,
        1,
        _FLOW,
        ("flow match euler", "flowmatch euler"),
        note="for flow models (SD3, Flux); plain Euler for others",
    ),
    SamplerInfo(
        "flow heun",
        FlowMatchHeunDiscreteScheduler,
        2,
        _FLOW,
        ("flow match heun", "flowmatch heun"),
        calls="2",
        note="for flow models (SD3, Flux); Heun in flow time for others",
    ),
)
