"""sigma / alpha from sigma_min to sigma_max, in formulas: EDM and its relatives.

Networks with EDM's preconditioning (Karras et al. 2022, arXiv 2206.00364, table 1) are given c_in (x0 + sigma eps),
c_in = 1 / sqrt(sigma^2 + sigma_data^2), are told c_noise, and predict relative to c_skip and c_out
(`prediction.linear_map`). Here the latent is c_in (x0 + sigma eps) itself, so that alpha^2 sigma_data^2 + sigma^2 = 1.

edm          c_noise = log(sigma) / 4 (EDM, Playground 2.5, CosXL)
cosine       c_noise = 2 arctan(sigma) / pi (Stable Audio Open)
consistency  250 log(sigma), and c_skip = 1 at sigma_min (Song et al. 2023, arXiv 2303.01469, appendix C)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from ...errors import InputError
from ..prediction import Prediction
from ..schedule import Array, Levels, NoiseSchedule
from .reading import ProcessOptions


def log_quarter(ratio: Array) -> Array:
    """c_noise of EDM: log(sigma) / 4."""
    with np.errstate(divide="ignore"):
        return np.log(ratio) / 4


class Formula(NoiseSchedule):
    """A process in formulas of sigma / alpha; subclasses give them.

    Args:
        count: of training times.
        first: the cleanest of them, 0, or 1 where 0 is the clean end.
        sigma_data: see `NoiseSchedule`.
    """

    scaled = True

    def __init__(self, count: int, prediction: Prediction, *, sigma_data: float = 1.0):
        self.sigma_data = sigma_data
        super().__init__(*self._from_ratio(self.ratio_at(np.arange(count, dtype=float))), prediction)

    def ratio_at(self, time: Array) -> Array:
        """sigma / alpha at training times."""
        raise NotImplementedError

    def time_of(self, ratio: Array) -> Array:
        """The reverse, within the trained range."""
        raise NotImplementedError

    def ratio_told(self, t: Array) -> Array:
        """sigma / alpha where the network is told `t`."""
        raise NotImplementedError

    def _from_ratio(self, ratio: Array) -> tuple[Array, Array]:
        with np.errstate(divide="ignore"):
            return (self.sigma_data**2 + ratio**2) ** -0.5, (1 + (self.sigma_data / ratio) ** 2) ** -0.5

    def from_lambda(self, lam: Array) -> tuple[Array, Array]:
        with np.errstate(over="ignore"):
            return self._from_ratio(np.exp(-lam))

    def at(self, time: Array | Sequence[float]) -> Levels:
        time = np.asarray(time, float)
        return self._levels(time, *self._from_ratio(self.ratio_at(time)))

    def at_told(self, t: Array | Sequence[float]) -> Levels:
        with np.errstate(over="ignore"):
            return self.at_lambda(-np.log(self.ratio_told(np.asarray(t, float))))

    def _time_at(self, lam: Array) -> Array:
        with np.errstate(over="ignore"):
            return self.time_of(np.exp(-lam))

    def time(self, levels: Levels) -> Array:
        return self._time_at(levels.lam)

    @property
    def told_at_training(self) -> Array:
        return self.told(np.arange(len(self.alpha), dtype=float), self.sigma / self.alpha)


class Edm(Formula):
    """sigma / alpha from `low` to `high`, even in its `rho`-th root, or in its logarithm where `rho` is None.

    Args:
        count: of training times.
        low, high: the least and the largest sigma / alpha.
        prediction: what the network predicts; its `sigma_data` is the process's.
    """

    kind = "edm"
    predicts: ClassVar[dict[str, float]] = {"epsilon": -1.0, "v_prediction": 1.0}
    """What Diffusers calls the two signs of the network's output: x0 = c_skip x + c_out F for "epsilon", which is v
    with its sign turned, in units of sigma_data.
    """

    usual: ClassVar[tuple[float, float]] = (0.002, 80.0)
    """sigma_min and sigma_max where a config has none."""
    spaced: ClassVar[str] = "karras"
    """Its `sigma_schedule` where a config has none."""
    data: ClassVar[float] = 0.5
    """Its `sigma_data` where a config has none."""

    def __init__(self, count: int, low: float, high: float, prediction: Prediction, *, rho: float | None):
        self.low, self.high, self.rho = low, high, rho
        self._span = max(count - 1, 1)
        super().__init__(count, prediction, sigma_data=prediction.sigma_data)

    @classmethod
    def of(cls, told: ProcessOptions) -> Edm:
        """Raises:
        InputError: a prediction that such networks do not make, or a range that is none.
        """
        low = cls.usual[0] if told.sigma_min is None else told.sigma_min
        high = cls.usual[1] if told.sigma_max is None else told.sigma_max
        if not 0 < low < high or not math.isfinite(high):
            raise InputError(f"sigma_min must be positive and below sigma_max, got {low!r} and {high!r}")
        rho = told.rho if (told.sigma_schedule or cls.spaced) == "karras" else None
        return cls(told.num_train_timesteps, low, high, cls._prediction(told), rho=rho)

    @classmethod
    def _prediction(cls, told: ProcessOptions) -> Prediction:
        if told.prediction_type not in cls.predicts:
            raise InputError(
                f"prediction_type of the process {cls.kind!r} must be one of {tuple(cls.predicts)}, got "
                f"{told.prediction_type!r}"
            )
        return Prediction("v_prediction", cls.predicts[told.prediction_type], told.sigma_data or cls.data)

    @property
    def least(self) -> Levels:
        low = np.array([self.low])
        return Levels(self.told(np.zeros(1), low), np.ones(1), low)

    def own_times(self, n: int) -> Array:
        return np.linspace(0.0, self.t_max, n)[::-1] if n > 1 else np.array([float(self.t_max)])

    def ratio_at(self, time: Array) -> Array:
        share = time / self._span
        if self.rho is None:
            return np.exp(math.log(self.low) + share * math.log(self.high / self.low))
        low, high = self.low ** (1 / self.rho), self.high ** (1 / self.rho)
        return (low + share * (high - low)) ** self.rho

    def time_of(self, ratio: Array) -> Array:
        ratio = np.clip(ratio, self.low, self.high)
        if self.rho is None:
            return np.log(ratio / self.low) / math.log(self.high / self.low) * self._span
        low, high = self.low ** (1 / self.rho), self.high ** (1 / self.rho)
        return (ratio ** (1 / self.rho) - low) / (high - low) * self._span

    def told(self, time: Array, ratio: Array) -> Array:
        return log_quarter(ratio)

    def ratio_told(self, t: Array) -> Array:
        return np.exp(4 * t)


class Cosine(Edm):
    """EDM with an angle for its timestep; its steps are even in log sigma."""

    kind = "cosine"
    usual, spaced, data = (0.3, 500.0), "exponential", 1.0

    def told(self, time: Array, ratio: Array) -> Array:
        return np.arctan(ratio) * 2 / math.pi

    def ratio_told(self, t: Array) -> Array:
        return np.tan(t * math.pi / 2)


class Consistency(Edm):
    """Consistency models, whose prediction is x itself at sigma_min."""

    kind = "consistency"
    predicts: ClassVar[dict[str, float]] = {"sample": 1.0}

    @classmethod
    def _prediction(cls, told: ProcessOptions) -> Prediction:
        super()._prediction(told)
        return Prediction("consistency", 1.0, told.sigma_data or cls.data, told.sigma_min or cls.usual[0])

    def own_times(self, n: int) -> Array:
        """Whole strides down from full noise, so that the last call is above sigma_min, where nothing is predicted."""
        return float(self.t_max) - np.arange(n) * (len(self.alpha) // n)

    def told(self, time: Array, ratio: Array) -> Array:
        return 1000 * log_quarter(ratio)

    def ratio_told(self, t: Array) -> Array:
        return np.exp(t / 250)
