"""Betas at whole timesteps: alpha_t^2 = prod(1 - beta), alpha^2 + sigma^2 = 1.

Stable Diffusion 1.x, 2.x and SDXL, and all whose configs have a `beta_schedule`. Sources: Ho et al. 2020, arXiv
2006.11239, eq. 4; zero terminal SNR, Lin et al. 2024, arXiv 2305.08891, algorithm 1; the shift of the SNR, Yang et al.
2024, arXiv 2408.06072 (CogVideoX), section 2.3.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ...declared import shown
from ...errors import InputError, UnknownNameError
from ..prediction import Prediction
from ..schedule import Array, NoiseSchedule
from .reading import MOST_TIMESTEPS, ProcessOptions


class Betas(NoiseSchedule):
    """Betas at the timesteps 0 ... T - 1."""

    kind = "betas"

    @classmethod
    def of(cls, told: ProcessOptions) -> Betas:
        """Raises:
        InputError: a beta schedule that does not exist, betas outside (0, 1], or too many of them.
        """
        squares = shifted_snr(np.cumprod(1.0 - betas_of(told)), told.snr_shift_scale or 1.0)
        alpha = np.sqrt(squares)
        if told.rescale_betas_zero_snr:
            alpha = with_zero_terminal_snr(alpha)
        return cls(alpha, np.sqrt(1.0 - alpha**2), Prediction(told.prediction_type))


def betas_of(told: ProcessOptions) -> Array:
    """The betas that a config gives or describes, `(T,)`.

    Raises:
        InputError: a beta schedule that does not exist, betas outside (0, 1], or too many of them.
    """
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
    return betas


def shifted_snr(squares: Array, scale: float) -> Array:
    """alpha^2 of a process whose SNR alpha^2 / sigma^2 is divided by `scale` (CogVideoX's `snr_shift_scale`)."""
    return squares / (scale + (1 - scale) * squares)


def ratios_of(told: ProcessOptions) -> tuple[float, float]:
    """The least and the largest sigma / alpha of the betas that a config gives or describes."""
    squares = np.cumprod(1.0 - betas_of(told))[[0, -1]]
    with np.errstate(divide="ignore"):
        least, most = np.sqrt(1 / squares - 1)
    return float(least), float(most)


def folded(told: ProcessOptions) -> list[float]:
    """The betas of a process with the shift of its SNR worked in, for readers that do not know the shift."""
    squares = shifted_snr(np.cumprod(1.0 - betas_of(told)), told.snr_shift_scale or 1.0)
    return (1 - squares / np.append(1.0, squares[:-1])).tolist()


def with_zero_terminal_snr(alpha: Array) -> Array:
    """alpha shifted and scaled so that alpha_{T-1} = 0 exactly (Lin et al. 2024, arXiv 2305.08891, algorithm 1).

    Raises:
        InputError: a process that adds no noise.
    """
    if not alpha[-1] < alpha[0]:
        raise InputError("rescale_betas_zero_snr needs a noise schedule that adds noise from one timestep to the next")
    return (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])


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
    "exp": _alpha_bar_betas(lambda u: np.exp(-12.0 * u)),
    "laplace": _alpha_bar_betas(_laplace_alpha_bar),
}
"""Beta schedules by Diffusers' names: (number of timesteps, beta_start, beta_end) -> betas of shape `(T,)`."""
