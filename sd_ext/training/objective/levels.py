"""The noise schedule of a run: which timesteps are trained, and the noisy latent, target and loss weight of each.

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
    """The noise levels of a run. Timesteps t are int64 tensors of shape (b,).

    Args:
        schedule: the noise schedule: keyword arguments of Diffusers' schedulers, with "prediction_type".
        loss: kind of error and loss weighting.
        timesteps: which timesteps are trained, and how often.

    Attributes:
        prediction: what the network predicts: epsilon, v_prediction or sample.
        alpha, sigma: coefficients of signal and noise of each timestep of the schedule, (timesteps,).
        first, end: timesteps from `first` up to, not including, `end` are trained.

    Raises:
        InputError: the range of timesteps is empty, or epsilon is to be predicted where alpha is 0.
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
        """Draw timesteps for all samples of a step, see `stratified_timesteps`: (count,)."""
        return stratified_timesteps(count, len(self.alpha), generator, self.first, self.end, self.power)

    def spread(self, count: int) -> Tensor:
        """`count` timesteps spread evenly over the trained range, for validation: (count,)."""
        strata = (torch.arange(count) + 0.5) / count * (self.end - self.first)
        return strata.long() + self.first

    def noised(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The noisy latents x_t = alpha_t x0 + sigma_t eps, of latents and noise (b, c, h, w): the same shape."""
        alpha, sigma = self._coefficients(t)
        return alpha * x0 + sigma * eps

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The prediction target for latents `x0` and noise `eps`: (b, c, h, w)."""
        return target(self.prediction, x0, eps, *self._coefficients(t))

    def weight(self, t: Tensor) -> Tensor:
        """The factor of each sample's error, see `loss_weight`: (b,)."""
        return loss_weight(self.loss.loss_weighting, self.prediction, self.snr(t), self.loss.gamma or None)

    def delta(self, t: Tensor) -> Tensor:
        """Where the error of each sample turns from square to linear, for huber and smooth_l1: (b,)."""
        return huber_delta(self.loss.huber_schedule, self.loss.huber_c, t, len(self.alpha), self.snr(t))

    def _coefficients(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.alpha[t][:, None, None, None], self.sigma[t][:, None, None, None]

    def snr(self, t: Tensor) -> Tensor:
        """(alpha / sigma)^2 of each sample: (b,)."""
        return (self.alpha[t] / self.sigma[t]).square()
