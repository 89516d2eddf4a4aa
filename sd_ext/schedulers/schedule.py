"""The forward process of the trained model, in float64.

    x_t = alpha_t x0 + sigma_t eps,        lambda_t = log(alpha_t / sigma_t)

`NoiseSchedule` knows alpha, sigma and lambda at every training timestep and between them; `Levels` is a handful of such
points, the raw material of grids and tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..declared import make, shown
from ..errors import InputError, UnknownNameError

Array = np.ndarray

LEAST_SIGNAL = 1e-6
"""What stands for alpha = 0 where a formula divides by alpha."""


NO_SIGNAL = 0.01
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


MOST_TIMESTEPS = 100_000
"""A hundred times what models have; more would fill the memory."""


@dataclass
class Training:
    """What a scheduler's config declares of the trained noise schedule; see `NoiseSchedule.from_config`.

    Raises:
        InputError: a number of timesteps that no model has.
    """

    num_train_timesteps: int = 1000
    beta_start: float = 0.0001
    beta_end: float = 0.02
    beta_schedule: str = "linear"
    trained_betas: Sequence[float] | None = None
    rescale_betas_zero_snr: bool | None = False
    prediction_type: str = "epsilon"
    use_flow_sigmas: bool | None = False

    def __post_init__(self) -> None:
        if not 1 <= self.num_train_timesteps <= MOST_TIMESTEPS:
            raise InputError(f"num_train_timesteps must be 1 to {MOST_TIMESTEPS:,}, got {self.num_train_timesteps}")


ZERO = Levels(np.zeros(1), np.ones(1), np.zeros(1))
"""The clean end of the process: alpha = 1, sigma = 0."""


class NoiseSchedule:
    """alpha_t, sigma_t and lambda_t of a trained model for t = 0 ... T-1, and in between.

    Between training timesteps lambda is linear in t, that is, log sigma of the variance-exploding form is interpolated
    (Karras et al. 2022, arXiv 2206.00364, as in k-diffusion). Beside an end with alpha = 0 (zero terminal SNR), where
    lambda is infinite, alpha is linear instead.

    Args:
        alpha: shape `(T,)`, at t = 0 ... T-1, falling.
        sigma: shape `(T,)`, rising.
        flow: whether this is the rectified flow x_t = (1 - sigma) x0 + sigma eps with t = sigma T.
    """

    def __init__(self, alpha: Array, sigma: Array, *, flow: bool = False):
        self.alpha, self.sigma, self.flow = np.asarray(alpha, float), np.asarray(sigma, float), flow

    @property
    def t_max(self) -> int:
        """The noisiest timestep: T - 1, or T for flow matching."""
        return len(self.alpha) - 1

    @classmethod
    def from_betas(cls, betas: Array) -> NoiseSchedule:
        """Variance-preserving: alpha^2 = prod(1 - beta) (Ho et al. 2020, arXiv 2006.11239, eq. 4)."""
        alphas_cumprod = np.cumprod(1.0 - np.asarray(betas, float))
        return cls(np.sqrt(alphas_cumprod), np.sqrt(1.0 - alphas_cumprod))

    @classmethod
    def flow_matching(cls, num_train_timesteps: int) -> NoiseSchedule:
        """Rectified flow, alpha = 1 - sigma (Liu et al. 2022, arXiv 2209.03003); t = sigma T, for t in [0, T]."""
        sigma = np.arange(num_train_timesteps + 1) / num_train_timesteps
        return cls(1.0 - sigma, sigma, flow=True)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseSchedule:
        """From the constructor arguments Diffusers' schedulers share.

        Args:
            config: `num_train_timesteps`, `beta_start`, `beta_end`, `beta_schedule`, `trained_betas`,
                `rescale_betas_zero_snr`, and `prediction_type` or `use_flow_sigmas` for flow matching. Missing keys
                take Diffusers' defaults; a whole scheduler config will do.

        Raises:
            InputError: a value of another type, a beta schedule that does not exist, betas outside (0, 1], or too many.
        """
        told = make(Training, config, "the noise schedule")
        if told.prediction_type == "flow_prediction" or told.use_flow_sigmas:
            return cls.flow_matching(told.num_train_timesteps)
        if told.trained_betas is not None:
            betas = np.asarray(told.trained_betas, float)
        elif told.beta_schedule in BETAS:
            with np.errstate(all="ignore"):  # what overflows is no beta, and refused below
                betas = BETAS[told.beta_schedule](told.num_train_timesteps, told.beta_start, told.beta_end)
        else:
            raise UnknownNameError("beta_schedule", told.beta_schedule, BETAS)
        real = betas.ndim == 1 and not np.iscomplexobj(betas)  # the root of a negative number is complex
        if not real or not 0 < len(betas) <= MOST_TIMESTEPS or not np.all((betas > 0) & (betas <= 1)):
            raise InputError(f"betas must be 1 to {MOST_TIMESTEPS:,} numbers in (0, 1], got {shown(betas.tolist())}")
        schedule = cls.from_betas(betas)
        return schedule.with_zero_terminal_snr() if told.rescale_betas_zero_snr else schedule

    def with_zero_terminal_snr(self) -> NoiseSchedule:
        """alpha shifted and scaled so that alpha_{T-1} = 0 exactly (Lin et al. 2024, arXiv 2305.08891, algorithm 1)."""
        if not self.alpha[-1] < self.alpha[0]:
            raise InputError(
                "rescale_betas_zero_snr needs a noise schedule that adds noise from one timestep to the next"
            )
        alpha = (self.alpha - self.alpha[-1]) * self.alpha[0] / (self.alpha[0] - self.alpha[-1])
        return NoiseSchedule(alpha, np.sqrt(1.0 - alpha**2))

    @cached_property
    def lam(self) -> Array:
        """lambda at the training timesteps, shape `(T,)`, falling; -inf at the end for zero terminal SNR."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha) - np.log(self.sigma)

    def from_lambda(self, lam: Array) -> tuple[Array, Array]:
        """(alpha, sigma) at lambda, by alpha^2 + sigma^2 = 1 or, for flow matching, alpha + sigma = 1."""
        power = 1.0 if self.flow else 2.0
        with np.errstate(over="ignore"):
            return (1 + np.exp(-power * lam)) ** (-1 / power), (1 + np.exp(power * lam)) ** (-1 / power)

    def at(self, t: Array | Sequence[float]) -> Levels:
        """The levels at timesteps `t`, shape `(n,)`; fractional ones are interpolated."""
        t = np.asarray(t, float)
        if self.flow:
            return Levels(t, 1.0 - t / (self.t_max), t / (self.t_max))
        low = np.clip(np.floor(t).astype(int), 0, self.t_max)
        high, part = np.minimum(low + 1, self.t_max), t - low
        with np.errstate(invalid="ignore"):
            lam = np.where(part > 0, (1 - part) * self.lam[low] + part * self.lam[high], self.lam[low])
        alpha, sigma = self.from_lambda(lam)
        beside_zero = (part > 0) & (self.alpha[high] == 0)
        alpha = np.where(beside_zero, (1 - part) * self.alpha[low], alpha)
        sigma = np.where(beside_zero, np.sqrt(1 - alpha**2), sigma)
        whole = part == 0
        return Levels(t, np.where(whole, self.alpha[low], alpha), np.where(whole, self.sigma[low], sigma))

    def at_lambda(self, lam: Array | Sequence[float]) -> Levels:
        """The levels at given lambda, shape `(n,)`; their timesteps are clipped to the trained range."""
        lam = np.asarray(lam, float)
        alpha, sigma = self.from_lambda(lam)
        if self.flow:
            return Levels(sigma * (self.t_max), alpha, sigma)
        lam_desc = self.lam[np.isfinite(self.lam)]
        t = np.interp(-lam, -lam_desc, np.arange(len(lam_desc)))
        if len(lam_desc) <= self.t_max:  # the last interval of a zero-terminal-SNR schedule, linear in alpha
            beyond = lam < lam_desc[-1]
            t = np.where(beyond, self.t_max - alpha / self.alpha[-2], t)
        return Levels(t, alpha, sigma)

    @property
    def ratio_range(self) -> tuple[float, float]:
        """(smallest, largest) finite sigma / alpha of the trained range."""
        finite = self.lam[np.isfinite(self.lam)]
        return math.exp(-finite.max()), math.exp(-finite.min())


def _alpha_bar_betas(alpha_bar: Callable[[Array], Array]) -> Callable[[int, float, float], Array]:
    """Betas, capped at 0.999, whose cumulated product follows `alpha_bar` on [0, 1]."""

    def betas(steps: int, _start: float, _end: float) -> Array:
        u = np.arange(steps + 1) / steps
        return np.minimum(1 - alpha_bar(u[1:]) / alpha_bar(u[:-1]), 0.999)

    return betas


def _laplace_alpha_bar(u: Array) -> Array:
    """Laplace-distributed log-SNR, mu = 0, b = 0.5 (Hang & Gu 2024, arXiv 2407.03297), with Diffusers' square root."""
    snr = np.exp(-0.5 * np.sign(0.5 - u) * np.log(1 - 2 * np.abs(0.5 - u) + 1e-6))
    return np.sqrt(snr / (1 + snr))


BETAS: dict[str, Callable[[int, float, float], Array]] = {
    "linear": lambda n, start, end: np.linspace(start, end, n),
    "scaled_linear": lambda n, start, end: np.linspace(start**0.5, end**0.5, n) ** 2,
    "squaredcos_cap_v2": _alpha_bar_betas(lambda u: np.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2),
    "sigmoid": lambda n, start, end: start + (end - start) / (1 + np.exp(-np.linspace(-6, 6, n))),
    "laplace": _alpha_bar_betas(_laplace_alpha_bar),
}
"""Beta schedules by Diffusers' names: (number of timesteps, beta_start, beta_end) -> betas of shape `(T,)`."""
