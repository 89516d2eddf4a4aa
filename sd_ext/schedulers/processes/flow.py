"""Rectified flow: alpha = 1 - sigma (Liu et al. 2022, arXiv 2209.03003; Esser et al. 2024, arXiv 2403.03206).

SD3, Flux, AuraFlow, Lumina, Qwen-Image, LTX, Wan and most models since. Training times are sigma T, 0 the clean end,
and the network is told the same; with `invert_sigmas` (Mochi) it is told (1 - sigma) T and predicts the velocity
towards the picture, and so does "unit_flow" (MiniMax H3), where that runs from 0 to 1.

Models were trained mostly at the sigmas that they need most, and steps are moved there:

    shift           sigma <- s sigma / (1 + (s - 1) sigma), s = `shift`                      (arXiv 2403.03206, eq. 23)
    by resolution   the same with s = e^mu, or mu where `time_shift_type` is "linear"
    shift_terminal  1 - sigma stretched, so that the last call is at this sigma
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..prediction import Prediction
from ..schedule import Array, Levels, NoiseSchedule
from .reading import ProcessOptions


class Flow(NoiseSchedule):
    """alpha = 1 - sigma.

    Args:
        steps: T; sigma is 1 at training time T.
        prediction: what the network predicts.
        upwards: whether the network is told 1 - sigma, which grows over a run, in place of sigma.
        scale: what it is told is this many times as large.
    """

    kind = "flow"
    flow = True

    def __init__(
        self, steps: int, prediction: Prediction | None = None, *, upwards: bool = False, scale: float | None = None
    ):
        sigma = np.arange(steps + 1) / steps
        super().__init__(1.0 - sigma, sigma, prediction or Prediction("flow_prediction"))
        self.upwards, self.scale = upwards, float(steps if scale is None else scale)

    @classmethod
    def of(cls, told: ProcessOptions) -> Flow:
        sign = -1.0 if told.invert_sigmas else 1.0
        return cls(told.num_train_timesteps, Prediction(told.prediction_type, sign), upwards=bool(told.invert_sigmas))

    def from_lambda(self, lam: Array) -> tuple[Array, Array]:
        """(alpha, sigma) at lambda, by alpha + sigma = 1."""
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-lam)), 1 / (1 + np.exp(lam))

    def at(self, time: Array | Sequence[float]) -> Levels:
        return self.at_sigma(np.asarray(time, float) / self.t_max)

    def at_sigma(self, sigma: Array) -> Levels:
        """The levels at the flow's own sigmas, from 0 to 1."""
        return Levels(self.told(sigma * self.t_max, sigma), 1.0 - sigma, sigma)

    def _time_at(self, lam: Array) -> Array:
        return self.from_lambda(lam)[1] * self.t_max

    def told(self, time: Array, ratio: Array) -> Array:
        share = time / self.t_max
        return (1 - share if self.upwards else share) * self.scale

    def at_told(self, t: Array | Sequence[float]) -> Levels:
        share = np.asarray(t, float) / self.scale
        return self.at_sigma(1 - share if self.upwards else share)

    def time(self, levels: Levels) -> Array:
        return levels.sigma * self.t_max

    @property
    def told_at_training(self) -> Array | None:
        if not self.upwards and self.scale == self.t_max:
            return None
        return self.told(np.arange(self.t_max + 1.0), self.sigma)


class UnitFlow(Flow):
    """Flow whose networks are told 1 - sigma, from 0 to 1, and predict x0 - eps."""

    kind = "unit_flow"

    @classmethod
    def of(cls, told: ProcessOptions) -> UnitFlow:
        return cls(told.num_train_timesteps, Prediction(told.prediction_type, -1.0), upwards=True, scale=1.0)


MOST = 700.0
"""More than this mu would overflow; steps are too close to sigma = 1 to be told apart long before."""


@dataclass(frozen=True)
class Shift:
    """Where a run's sigmas are moved to.

    Args:
        factor: s of the formula above.
        terminal: the last sigma, or None.
    """

    factor: float = 1.0
    terminal: float | None = None

    @classmethod
    def of(cls, told: ProcessOptions, mu: float | None) -> Shift:
        """The shift that a config asks for, for a run that was told `mu`."""
        factor = told.fixed_shift
        if told.use_dynamic_shifting:
            assert mu is not None
            factor = math.exp(min(mu, MOST)) if told.time_shift_type == "exponential" else mu
        return cls(factor, told.shift_terminal or None)

    def moved(self, sigma: Array) -> Array:
        """Sigmas moved by the factor."""
        return self.factor * sigma / (1 + (self.factor - 1) * sigma)

    def stretched(self, sigma: Array) -> Array:
        """Sigmas of a run, from the first call's to the last one's, stretched to end at `terminal`."""
        if self.terminal is None or sigma[-1] >= 1:
            return sigma
        return 1 - (1 - sigma) * (1 - self.terminal) / (1 - sigma[-1])


def own_sigmas(n: int, steps: int, factor: float, *, to_zero: bool, fixed: bool) -> Array:
    """Where `n` calls fall before the shift, if nobody says.

    Args:
        steps: T.
        factor: the shift.
        to_zero: stop one step short of 0, as where `use_flow_sigmas` is set; else end at the least trained sigma, as
            Diffusers' flow schedulers do.
        fixed: whether the shift is the config's and not by resolution; Diffusers then moves the least sigma twice.
    """
    if to_zero:
        return np.arange(n, 0, -1) / n
    least = 1 / steps
    return np.linspace(1.0, Shift(factor).moved(np.array(least)) if fixed else least, n)


def resampled(sigmas: Array, n: int) -> Array:
    """A run's unshifted sigmas, for `n` steps in place of as many as there are; the end at 0 is left out."""
    if n == len(sigmas):
        return sigmas
    curve = np.append(sigmas, 0.0)
    return np.interp(np.linspace(0, len(sigmas), n + 1)[:-1], np.arange(len(curve)), curve)
