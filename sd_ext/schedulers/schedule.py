"""The forward process of the trained model, in float64.

    x_t = alpha_t x0 + sigma_t eps,        lambda_t = log(alpha_t / sigma_t)

`NoiseSchedule` knows alpha, sigma and lambda at every training time and between them; `processes` has one for each kind
of model. `Levels` is a handful of such points, the raw material of grids and tables.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..declared import make
from .prediction import Prediction
from .processes.reading import ProcessOptions, read

Array = np.ndarray

LEAST_SIGNAL = 1e-6
"""What stands for alpha = 0 where a formula divides by alpha."""


NO_SIGNAL = 0.005
"""Below this alpha a picture is all but noise. Steps on eps grow by 1 / alpha there, and differences of predictions
would mostly be rounding error: they are of one call, first order and uncorrected.
"""


@dataclass(frozen=True)
class Levels:
    """Noise levels, from most to least noise.

    Args:
        t: timestep told to the network, shape `(n,)`; may be fractional.
        alpha: signal coefficient, shape `(n,)`.
        sigma: noise coefficient, shape `(n,)`.
        stage: `(n,)` integers, 0 where a solver step begins and 1, 2, ... at its further network calls; all zero for
            one-stage samplers.
    """

    t: Array
    alpha: Array
    sigma: Array
    stage: Array | None = None

    @property
    def lam(self) -> Array:
        """lambda = log(alpha / sigma); +inf where sigma = 0 and -inf where alpha = 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha) - np.log(self.sigma)

    @property
    def ratio(self) -> Array:
        """sigma / alpha, the "sigma" of k-diffusion and of Diffusers' Euler family; inf where alpha = 0."""
        with np.errstate(divide="ignore"):
            return self.sigma / self.alpha

    def __len__(self) -> int:
        return len(self.t)

    def __getitem__(self, key: slice | Array) -> Levels:
        return Levels(self.t[key], self.alpha[key], self.sigma[key], None if self.stage is None else self.stage[key])

    def then(self, other: Levels) -> Levels:
        """These levels followed by `other`."""
        return Levels(*(np.concatenate([getattr(self, f), getattr(other, f)]) for f in ("t", "alpha", "sigma")))

    def after(self, first: Levels) -> Levels:
        """One level more, and then these: its call is a step of its own, whatever their stages are."""
        levels = first.then(self)
        return levels if self.stage is None else levels.with_stages([1, *self.stage])

    def with_signal(self, least: float = LEAST_SIGNAL) -> Levels:
        """These levels with alpha at least `least`: what eps-basis tables need at zero terminal SNR.

        Their weights grow like 1 / alpha there and cancel in float64 once the prediction type is folded in.
        """
        return Levels(self.t, np.maximum(self.alpha, least), self.sigma, self.stage)

    def with_stages(self, stage: Sequence[int]) -> Levels:
        return Levels(self.t, self.alpha, self.sigma, np.asarray(stage, dtype=int))


ZERO = Levels(np.zeros(1), np.ones(1), np.zeros(1))
"""The clean end of the process: alpha = 1, sigma = 0."""


class NoiseSchedule:
    """A process: alpha, sigma and lambda of a trained model at its training times 0 ... T - 1, and in between.

    Between training times lambda is linear in time, that is, log sigma of the variance-exploding form is interpolated
    (Karras et al. 2022, arXiv 2206.00364, as in k-diffusion). Beside an end with alpha = 0 (zero terminal SNR), where
    lambda is infinite, alpha is linear instead.

    Training times count what the process was trained at, 0 the cleanest. What a network is told at one, its timestep,
    is the same number in most processes; see `told`.

    Args:
        alpha: shape `(T,)`, falling.
        sigma: shape `(T,)`, rising.
        prediction: what the network predicts.
    """

    scaled: ClassVar[bool] = False
    """Whether networks get another scale than that of pictures, in which runs end: no call can be at such an end."""
    kinds: ClassVar[dict[str, type[NoiseSchedule]]] = {}
    """The processes by name; a subclass with a `kind` is one."""
    kind: ClassVar[str] = ""
    flow: ClassVar[bool] = False
    """Whether alpha + sigma = 1, in place of alpha^2 sigma_data^2 + sigma^2 = 1."""
    sigma_data: float = 1.0
    """Standard deviation of the data in whose units networks predict."""

    def __init__(self, alpha: Array, sigma: Array, prediction: Prediction | None = None):
        self.alpha, self.sigma = np.asarray(alpha, float), np.asarray(sigma, float)
        self.prediction = prediction or Prediction()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "kind" in cls.__dict__:
            NoiseSchedule.kinds[cls.kind] = cls

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """The process that a scheduler's config describes; see `processes`.

        Args:
            config: of any scheduler, or part of one. Missing keys take the defaults of its class in Diffusers, or else
                those of `ProcessOptions`.

        Raises:
            InputError: a value of another type or that no model has, options that do not fit together, or a class whose
                process cannot be run.
        """
        told = make(ProcessOptions, read(config), "the noise schedule")
        return NoiseSchedule.kinds[told.kind].of(told)

    @classmethod
    def of(cls, told: ProcessOptions) -> NoiseSchedule:
        """The process with these options."""
        raise NotImplementedError

    # ---- what a network is told --------------------------------------------------------------------------------------

    def told(self, time: Array, ratio: Array) -> Array:
        """The timesteps that the network is told at training times `time`, where sigma / alpha is `ratio`."""
        return time

    def at_told(self, t: Array | Sequence[float]) -> Levels:
        """The levels at which the network is told `t`, shape `(n,)`."""
        return self.at(t)

    def time(self, levels: Levels) -> Array:
        """The training times of levels, shape `(n,)`."""
        return levels.t

    @property
    def told_at_training(self) -> Array | None:
        """What the network is told at each training time, `(T,)`; None where that is the time itself."""
        return None

    @property
    def trained(self) -> NoiseSchedule:
        """The process whose training times are those for noise on pictures; see `forward`."""
        return self

    # ---- levels ------------------------------------------------------------------------------------------------------

    @property
    def t_max(self) -> int:
        """The noisiest training time: T - 1, or T where 0 is the clean end itself."""
        return len(self.alpha) - 1

    @property
    def t_min(self) -> int:
        """The cleanest training time with noise."""
        return int(self.sigma[0] == 0)

    @property
    def least(self) -> Levels:
        """Where runs end that do not end clean: the least trained noise, in the scale of pictures."""
        return self.at([0.0])

    def own_times(self, n: int) -> Array | None:
        """Where `n` steps fall if no grid is named, as training times; None for processes without steps of their own,
        whose configs name them.
        """
        return None

    @cached_property
    def lam(self) -> Array:
        """lambda at the training times, shape `(T,)`, falling; -inf at the end for zero terminal SNR."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha) - np.log(self.sigma)

    def from_lambda(self, lam: Array) -> tuple[Array, Array]:
        """(alpha, sigma) at lambda, by alpha^2 + sigma^2 = 1."""
        with np.errstate(over="ignore"):
            return (1 + np.exp(-2 * lam)) ** -0.5, (1 + np.exp(2 * lam)) ** -0.5

    def at(self, time: Array | Sequence[float]) -> Levels:
        """The levels at training times, shape `(n,)`; fractional ones are interpolated."""
        time = np.asarray(time, float)
        low = np.clip(np.floor(time).astype(int), 0, self.t_max)
        high, part = np.minimum(low + 1, self.t_max), time - low
        with np.errstate(invalid="ignore"):
            lam = np.where(part > 0, (1 - part) * self.lam[low] + part * self.lam[high], self.lam[low])
        alpha, sigma = self.from_lambda(lam)
        beside_zero = (part > 0) & (self.alpha[high] == 0)
        alpha = np.where(beside_zero, (1 - part) * self.alpha[low], alpha)
        sigma = np.where(beside_zero, np.sqrt(1 - alpha**2), sigma)
        whole = part == 0
        return self._levels(time, np.where(whole, self.alpha[low], alpha), np.where(whole, self.sigma[low], sigma))

    def at_lambda(self, lam: Array | Sequence[float]) -> Levels:
        """The levels at given lambda, shape `(n,)`; their training times are clipped to the trained range."""
        lam = np.asarray(lam, float)
        return self._levels(self._time_at(lam), *self.from_lambda(lam))

    def _time_at(self, lam: Array) -> Array:
        """The training times at given lambda, within the trained range."""
        lam_desc = self.lam[np.isfinite(self.lam)]
        time = np.interp(-lam, -lam_desc, np.arange(len(lam_desc)))
        if len(lam_desc) <= self.t_max:  # the last interval of a zero-terminal-SNR schedule, linear in alpha
            alpha, _ = self.from_lambda(lam)
            time = np.where(lam < lam_desc[-1], self.t_max - alpha / self.alpha[-2], time)
        return time

    def _levels(self, time: Array, alpha: Array, sigma: Array) -> Levels:
        with np.errstate(divide="ignore"):
            return Levels(self.told(time, sigma / alpha), alpha, sigma)

    @property
    def ratio_at_ends(self) -> Array:
        """sigma / alpha at the first and at the last training time; infinite where there is no signal."""
        with np.errstate(divide="ignore"):
            return self.sigma[[0, -1]] / self.alpha[[0, -1]]

    @property
    def ratio_range(self) -> tuple[float, float]:
        """(smallest, largest) finite sigma / alpha of the trained range."""
        finite = self.lam[np.isfinite(self.lam)]
        return math.exp(-finite.max()), math.exp(-finite.min())
