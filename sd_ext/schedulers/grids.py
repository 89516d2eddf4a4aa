"""Grids: where the steps of a sampler fall, as plain functions.

Timestep grids return timesteps, ratio grids return sigma / alpha, always `(n,)` in float64 from most to least noise;
the clean end is not part of a grid. `GRIDS` gives each a name and turns it into `Levels`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta as beta_distribution

from ..errors import InputError, UnknownNameError
from .schedule import Array, Levels, NoiseSchedule

AYS = {
    "sd": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}
"""sigma / alpha of the published ten-step schedules (Sabour et al. 2024, arXiv 2404.14507), end included."""


def linspace(t_max: float, n: int, *, closed: bool = True) -> Array:
    """Even in t from `t_max`, down to 0 when `closed`, else stopping one step short of it."""
    return np.linspace(0, t_max, n)[::-1] if closed and n > 1 else np.linspace(0, t_max, n + 1)[:0:-1]


def leading(t_max: float, n: int, *, offset: int = 0, closed: bool = True) -> Array:
    """Multiples of a whole stride from 0, plus `offset`; never starts at full noise (arXiv 2305.08891, table 2)."""
    stride = int(t_max + 1) // (n if closed else n + 1)
    return np.arange(n if closed else n + 1)[::-1][:n] * float(stride) + offset


def trailing(t_max: float, n: int) -> Array:
    """Strides counted down from full noise (arXiv 2305.08891, table 2)."""
    return np.round(np.arange(n, 0, -1) * ((t_max + 1) / n)) - 1


def beta(t_max: float, n: int, *, a: float = 0.6, b: float = 0.6) -> Array:
    """Quantiles of a Beta(a, b) distribution in t: denser at both ends (Lee et al. 2024, arXiv 2407.12173)."""
    return t_max * beta_distribution.ppf(1 - np.arange(n) / n, a, b)


def beta_ratio(low: float, high: float, n: int, *, a: float = 0.6, b: float = 0.6) -> Array:
    """Quantiles of a Beta(a, b) distribution in sigma / alpha: what Diffusers' `use_beta_sigmas` does."""
    return low + (high - low) * beta_distribution.ppf(np.linspace(1, 0, n), a, b)


def karras(low: float, high: float, n: int, *, rho: float = 7.0) -> Array:
    """Even in (sigma / alpha)^(1/rho) from `high` to `low` (Karras et al. 2022, arXiv 2206.00364, eq. 5)."""
    return np.linspace(high ** (1 / rho), low ** (1 / rho), n) ** rho


def exponential(low: float, high: float, n: int) -> Array:
    """Even in log(sigma / alpha) from `high` to `low`, both ends included."""
    return np.exp(np.linspace(np.log(high), np.log(low), n))


def lambda_uniform(low: float, high: float, n: int) -> Array:
    """Even in lambda, stopping one step short of `low` (Lu et al. 2022, arXiv 2206.00927, section 3.4)."""
    return np.exp(np.linspace(np.log(high), np.log(low), n + 1))[:-1]


def align_your_steps(n: int, *, family: str = "sd") -> Array:
    """The published ten steps of Align Your Steps at any count, by log-linear interpolation, its end left out."""
    known = np.log(AYS[family])
    return np.exp(np.interp(np.linspace(0, 1, n + 1), np.linspace(0, 1, len(known)), known))[:-1]


@dataclass(frozen=True)
class GridOptions:
    """What a scheduler's config says about its grid, in one place.

    Args:
        offset: Diffusers' `steps_offset`.
        closed: whether "linspace" and "leading" include t = 0, as DDIM's do and DPM-Solver's do not.
        whole: whether "linspace" rounds to whole timesteps.
        low, high: smallest and largest sigma / alpha for ratio grids.
        t_max: the noisiest timestep to use.
        shift: timestep shift of flow matching, sigma <- shift sigma / (1 + (shift - 1) sigma).
    """

    offset: int
    closed: bool
    whole: bool
    low: float
    high: float
    t_max: int
    shift: float = 1.0


@dataclass(frozen=True)
class Grid:
    """A grid with a name: `place(options, n)` returns timesteps, or sigma / alpha where `ratios`."""

    name: str
    description: str
    place: Callable[[GridOptions, int], Array]
    ratios: bool = False

    def levels(self, schedule: NoiseSchedule, n: int, options: GridOptions) -> Levels:
        """The `n` noise levels of this grid on a model's schedule.

        Raises:
            InputError: if the grid cannot place `n` distinct levels.
        """
        values = np.asarray(self.place(options, n), float)
        levels = schedule.at_lambda(-np.log(values)) if self.ratios else schedule.at(values)
        if schedule.flow and options.shift != 1:
            sigma = options.shift * levels.sigma / (1 + (options.shift - 1) * levels.sigma)
            levels = schedule.at(sigma * schedule.t_max)
        if (
            len(levels) != n
            or np.any(np.diff(levels.ratio) >= 0)
            or np.any((levels.t < 0) | (levels.t > schedule.t_max))
        ):
            raise InputError(
                f"the grid {self.name!r} cannot place {n} distinct steps between t = {schedule.t_max} and 0; "
                "use fewer steps or another grid"
            )
        return levels


def _linspace(o: GridOptions, n: int) -> Array:
    t = linspace(o.t_max, n, closed=o.closed)
    return np.round(t) if o.whole else t


GRIDS: dict[str, Grid] = {
    grid.name: grid
    for grid in (
        Grid("linspace", "even in t, from full noise to t = 0", _linspace),
        Grid(
            "leading",
            "whole strides from t = 0 up; Stable Diffusion's default, never starts at full noise",
            lambda o, n: leading(o.t_max, n, offset=o.offset, closed=o.closed),
        ),
        Grid("trailing", "whole strides from full noise down", lambda o, n: trailing(o.t_max, n)),
        Grid("karras", "even in sigma^(1/7)", lambda o, n: karras(o.low, o.high, n), ratios=True),
        Grid("exponential", "even in log sigma, both ends", lambda o, n: exponential(o.low, o.high, n), ratios=True),
        Grid(
            "lambda_uniform",
            "even in log-SNR, DPM-Solver's own",
            lambda o, n: lambda_uniform(o.low, o.high, n),
            ratios=True,
        ),
        Grid("beta", "Beta(0.6, 0.6) quantiles in t", lambda o, n: beta(o.t_max, n)),
        Grid(
            "beta_sigmas", "Beta(0.6, 0.6) quantiles in sigma", lambda o, n: beta_ratio(o.low, o.high, n), ratios=True
        ),
        Grid("ays", "Align Your Steps for SD 1.x", lambda _, n: align_your_steps(n), ratios=True),
        Grid("ays_sdxl", "Align Your Steps for SDXL", lambda _, n: align_your_steps(n, family="sdxl"), ratios=True),
    )
}


def list_grids() -> list[Grid]:
    """Every grid by name, with a description."""
    return list(GRIDS.values())


def get_grid(name: str) -> Grid:
    """The grid called `name`, whatever its case and word separators.

    Raises:
        UnknownNameError: listing the closest names.
    """
    key = name.strip().lower().replace(" ", "_").replace("-", "_")
    if key not in GRIDS:
        raise UnknownNameError("grid", name, GRIDS)
    return GRIDS[key]
