"""Flow matching, x = (1 - sigma) x0 + sigma eps: Euler and Heun in sigma, as SD3, Flux and others use them.

One class serves both kinds of model: with `prediction_type="flow_prediction"`, the default, it runs a flow model on
Diffusers' flow sigmas; with any other it runs a variance-preserving model like the other samplers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch

from ...errors import InputError
from .. import placement
from ..base import TableScheduler
from ..info import SamplerInfo
from ..multistage import MultiCallScheduler, Stage, chain, multistage, step_sizes
from ..schedule import Levels
from ..table import Row, Table
from .consistency import lcm
from .first_order import first_order

__all__ = ["FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"]


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
    """Base of the flow-matching schedulers, which run flow models unless told another `prediction_type`; see
    `processes.flow` for the shift and its options.
    """

    prediction_type: str = "flow_prediction"

    _flow_flag: ClassVar[bool | None] = False

    def set_timesteps(  # type: ignore[override]
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
        timesteps: Sequence[float] | None = None,
    ) -> None:
        """As `TableScheduler.set_timesteps`, in Diffusers' order.

        Args:
            timesteps: what the network is told; without `sigmas` also where the sigmas come from, before the shift.

        Raises:
            InputError: arguments that do not fit together, or values that cannot be stepped through.
        """
        if timesteps is None or not self.schedule.flow:
            return super().set_timesteps(num_inference_steps, device, timesteps, sigmas, mu)
        t = placement.falling("timesteps", timesteps)
        asked = self._asked(t / self.schedule.t_max if sigmas is None else sigmas, mu)
        assert asked is not None and asked.sigmas is not None
        t = t[: len(asked.sigmas)] if t[-1] == 0 else t
        if len(t) != len(asked.sigmas):
            raise InputError(f"{len(asked.sigmas)} sigmas and {len(t)} timesteps do not fit together")
        self._fits(num_inference_steps, len(t), "timesteps")
        self._own.asked = asked
        levels = self._grid_levels(len(t))
        self.announce(self._explicit_stages(replace(levels, t=np.append(t, levels.t[-1]))), device)


class FlowMatchEulerDiscreteScheduler(FlowMatchScheduler):
    """Euler's method for flow matching, which is `first_order`: the same step on every path.

    Order 1, 1 call a step. Source: arXiv 2403.03206, section 2.

    Args:
        stochastic_sampling: go to x0 and afresh to the next level, see `lcm`.
    """

    stochastic_sampling: bool = False

    def _table(self, levels: Levels, eta: float) -> Table:
        return lcm(levels) if self.config["stochastic_sampling"] else first_order(levels)


class FlowMatchHeunDiscreteScheduler(FlowMatchScheduler, MultiCallScheduler):
    """Heun's method for flow matching; see `flow_heun`.

    Order 2, 2 calls a step. Source: arXiv 2403.03206, section 2.
    """

    def _nodes(self, steps: Levels, i: int, size: int) -> Levels:
        return steps[i + 1 : i + 2]

    def _steps(self, calls: int) -> tuple[Levels, list[int]]:
        sizes = step_sizes(calls, 2, tail=self._tail(self._single(self._end())))
        return self._grid_levels(len(sizes)), sizes

    def _explicit_stages(self, levels: Levels) -> Levels:
        tail = self._tail(self._single(levels))
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
