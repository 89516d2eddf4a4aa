"""Betas for where steps may fall, and a network that is told a quarter of log sigma (`timestep_type="continuous"`).

Stable Video Diffusion and others that were trained in EDM's way: sigma / alpha from `sigma_min` to `sigma_max`,
v-prediction, c_noise = log(sigma) / 4 (Karras et al. 2022, arXiv 2206.00364, table 1, with sigma_data = 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..schedule import Array, Levels, NoiseSchedule
from .betas import Betas
from .edm import Edm, log_quarter
from .reading import ProcessOptions


class Continuous(Betas):
    """Betas whose networks are told c_noise."""

    kind = "continuous"
    _trained: NoiseSchedule | None = None

    @classmethod
    def of(cls, told: ProcessOptions) -> Continuous:
        made = super().of(told)
        assert isinstance(made, Continuous)
        if told.sigma_min and told.sigma_max:
            made._trained = Edm(told.num_train_timesteps, told.sigma_min, told.sigma_max, made.prediction, rho=None)
        return made

    def told(self, time: Array, ratio: Array) -> Array:
        return log_quarter(ratio)

    def at_told(self, t: Array | Sequence[float]) -> Levels:
        return self.at_lambda(-4 * np.asarray(t, float))

    def time(self, levels: Levels) -> Array:
        return self._time_at(levels.lam)

    @property
    def told_at_training(self) -> Array:
        return log_quarter(self.sigma / self.alpha)

    @property
    def trained(self) -> NoiseSchedule:
        """Its whole range of sigma, which reaches further than the betas."""
        return self._trained or self
