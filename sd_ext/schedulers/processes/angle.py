"""sigma = sin^2(pi u / 2) for u from 0 to 1, alpha^2 + sigma^2 = 1, and a network that is told the angle of the two.

Dance Diffusion, whose configs are of Diffusers' IPNDMScheduler and have no betas; v-prediction. The network is told 2 /
pi arctan(sigma / alpha), from 0 to 1.
"""

from __future__ import annotations

import math

import numpy as np

from ..prediction import Prediction
from ..schedule import Array
from .edm import Formula
from .reading import ProcessOptions


class Angle(Formula):
    """Training times are 1 ... T, in even steps of u; 0 is the clean end, and alpha is 0 at T."""

    kind = "angle"

    def __init__(self, steps: int, prediction: Prediction):
        self.steps = steps
        super().__init__(steps + 1, prediction)

    @classmethod
    def of(cls, told: ProcessOptions) -> Angle:
        return cls(told.num_train_timesteps, Prediction(told.prediction_type))

    def own_times(self, n: int) -> Array:
        return self.steps * np.arange(n, 0, -1) / n

    def ratio_at(self, time: Array) -> Array:
        sigma = np.sin(time / self.steps * math.pi / 2) ** 2
        with np.errstate(divide="ignore"):
            return sigma / np.sqrt(np.maximum(0.0, 1 - sigma**2))

    def time_of(self, ratio: Array) -> Array:
        with np.errstate(divide="ignore"):
            sigma = (1 + ratio**-2.0) ** -0.5
        return np.arcsin(np.sqrt(sigma)) * 2 / math.pi * self.steps

    def told(self, time: Array, ratio: Array) -> Array:
        return np.arctan(ratio) * 2 / math.pi

    def ratio_told(self, t: Array) -> Array:
        return np.tan(t * math.pi / 2)

    @property
    def told_at_training(self) -> Array:
        with np.errstate(divide="ignore"):
            return self.told(np.arange(self.steps + 1.0), self.sigma / self.alpha)
