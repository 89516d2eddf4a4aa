"""The noise levels of a run: its schedule, which of its timesteps are trained, and what each asks and counts.

x_t = alpha_t x0 + sigma_t eps
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from sd_ext.schedulers import NoiseSchedule
from sd_ext.training.objective.error import huber_delta
from sd_ext.training.objective.settings import LossSettings, TimestepSettings
from sd_ext.training.objective.target import check_terminal_snr, target
from sd_ext.training.objective.timesteps import check_range, stratified_timesteps
from sd_ext.training.objective.weights import loss_weight


class NoiseLevels:
    """Timesteps t, (b,) whole numbers, and what belongs to them.

    Args:
        schedule: as Diffusers' schedulers take it, with "prediction_type".
        loss: how errors count.
        timesteps: which are trained.

    Attributes:
        prediction: what the network predicts: epsilon, v_prediction or sample.
        first, end: timesteps from `first` up to, not including, `end` are trained.

    Raises:
        InputError: no timestep is trained, or some of them cannot be with this prediction.
    """

    def __init__(self, schedule: dict[str, Any], loss: LossSettings, timesteps: TimestepSettings):
        coefficients = NoiseSchedule.from_config(schedule)
        self.prediction: str = schedule["prediction_type"]
        self.loss, self.power = loss, timesteps.timestep_power
        self.alpha, self.sigma = (torch.from_numpy(a).float() for a in (coefficients.alpha, coefficients.sigma))
        self.first, self.end = timesteps.timestep_min, min(timesteps.timestep_max, len(self.alpha))
        check_range(len(self.alpha), self.first, self.end)
        check_terminal_snr(self.prediction, self.alpha[self.first : self.end])

    def draw(self, count: int, generator: Generator) -> Tensor:
        """Timesteps for all samples of a step, one from each stratum, in random order: (count,)."""
        return stratified_timesteps(count, len(self.alpha), generator, self.first, self.end, self.power)

    def spread(self, count: int) -> Tensor:
        """Timesteps spread evenly over those that are trained: (count,)."""
        strata = (torch.arange(count) + 0.5) / count * (self.end - self.first)
        return strata.long() + self.first

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t for latents and noise (b, c, h, w): the same shape."""
        alpha, sigma = self._coefficients(t)
        return alpha * x0 + sigma * eps

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should predict: (b, c, h, w)."""
        return target(self.prediction, x0, eps, *self._coefficients(t))

    def weight(self, t: Tensor) -> Tensor:
        """How much the error of each sample counts: (b,)."""
        return loss_weight(self.loss.loss_weighting, self.prediction, self._snr(t), self.loss.gamma or None)

    def delta(self, t: Tensor) -> Tensor:
        """Where the errors of huber and smooth_l1 turn linear: (b,)."""
        return huber_delta(self.loss.huber_schedule, self.loss.huber_c, t, len(self.alpha), self._snr(t))

    def _coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.alpha[t][:, None, None, None], self.sigma[t][:, None, None, None]

    def _snr(self, t: Tensor) -> Tensor:
        return (self.alpha[t] / self.sigma[t]).square()
