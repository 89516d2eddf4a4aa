"""Grids as the programs that ship them define them, restated by scalars on Stable Diffusion's schedule."""

from __future__ import annotations

import math

import numpy as np

from sd_ext.schedulers import Levels, NoiseSchedule
from sd_ext.schedulers.placement import Asked, grid_levels
from sd_ext.schedulers.processes.flow import Shift
from sd_ext.schedulers.schedule import ZERO

from .conftest import SD

COUNTS = range(1, 51)


def place(name: str, n: int, config: dict | None = None, **options) -> Levels:
    """The levels of a grid and the clean end, as a scheduler with this config places them."""
    settings = {"grid": name, "steps_offset": 0, "lambda_min_clipped": -math.inf, "flow_shift": 1.0}
    settings |= {"sigma_min": None, "sigma_max": None, **(SD if config is None else config), **options}
    schedule = NoiseSchedule.from_config(settings)
    asked = Asked(Shift(settings["flow_shift"]))
    return grid_levels(schedule, settings, n, ZERO, closed=True, whole=True, asked=asked)


def sigma_table() -> np.ndarray:
    """sigma / alpha of Stable Diffusion at t = 0 ... 999, from the definition."""
    alphas_cumprod = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


SIGMAS = sigma_table()
LOW, HIGH = SIGMAS[0], SIGMAS[-1]


def sigma_at(t: float) -> float:
    """k-diffusion's sigma between timesteps: log-linear."""
    return math.exp(np.interp(t, np.arange(1000), np.log(SIGMAS)))


def ramp(n: int) -> list[float]:
    """n numbers from 0 to 1; one alone is 0."""
    return [i / max(n - 1, 1) for i in range(n)]


def mochi(n: int, threshold: float = 0.025) -> list[float]:
    """Progress of Mochi's linear-quadratic schedule: polynomial coefficients rather than a bend."""
    if n == 1:
        return [0.0]
    half = n // 2
    difference = half - threshold * n
    quadratic = difference / (half * (n - half) ** 2)
    linear = threshold / half - 2 * difference / (n - half) ** 2
    return [threshold * i / half if i < half else quadratic * (i * i + half * half) + linear * i for i in range(n)]


def bong(n: int, low: float, high: float) -> list[float]:
    """The two arcs point by point: slopes 0.2 for 40 points, both pivots at six tenths of n + 2 points."""
    if n == 1:
        return [high]
    meeting, middle = int((n + 2) * 0.6), (low + high) / 2

    def bend(x: int) -> float:
        return math.atan(-0.2 / ((n + 2) / 40) * (x - meeting)) / math.pi + 0.5

    def stretch(x: int, first: int, last: int, start: float, end: float) -> float:
        return end + (start - end) * (bend(x) - bend(last)) / (bend(first) - bend(last))

    head = [stretch(x, 0, meeting - 1, high, middle) for x in range(meeting - 1)]
    return head + [stretch(x, meeting, n + 1, middle, low) for x in range(meeting, n + 1)]


def laplace_quantile(p: float, mu: float = 0.0, b: float = 0.5) -> float:
    """log sigma at progress p: falling, cut at the model's ends, with 1e-5 against log 0."""
    log_sigma = mu - b * math.log(2 * p + 1e-5) if p < 0.5 else mu + b * math.log(2 * (1 - p) + 1e-5)
    return min(max(math.exp(log_sigma if p != 0.5 else mu), LOW), HIGH)


DEFINITIONS = {
    "normal": lambda n: [sigma_at(999 * (1 - r)) for r in ramp(n)],
    "uniform": lambda n: [sigma_at(999 * (1 - r)) for r in ramp(n)],
    "sgm_uniform": lambda n: [sigma_at(999 * (1 - i / n)) for i in range(n)],
    "simple": lambda n: [SIGMAS[-(1 + int(i * (1000 / n)))] for i in range(n)],
    "ddim_uniform": lambda n: SIGMAS[1 :: 1000 // n][:n][::-1],
    "karras": lambda n: [(HIGH ** (1 / 7) + r * (LOW ** (1 / 7) - HIGH ** (1 / 7))) ** 7 for r in ramp(n)],
    "exponential": lambda n: [math.exp((1 - r) * math.log(HIGH) + r * math.log(LOW)) for r in ramp(n)],
    "polyexponential": lambda n: [math.exp((1 - r) * math.log(HIGH) + r * math.log(LOW)) for r in ramp(n)],
    "kl_optimal": lambda n: [math.tan(r * math.atan(LOW) + (1 - r) * math.atan(HIGH)) for r in ramp(n)],
    "laplace": lambda n: [laplace_quantile(r) for r in ramp(n)],
    "cosine": lambda n: [LOW + 0.5 * (HIGH - LOW) * (1 - math.cos(math.pi * (1 - r**0.5))) for r in ramp(n)],
    "linear_quadratic": lambda n: [HIGH * (1 - s) for s in mochi(n)],
    "bong_tangent": lambda n: bong(n, LOW, HIGH),
}
"""Each grid as the programs that ship it define it, in their terms, by scalars."""
