"""Every grid by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from ...errors import UnknownNameError
from ..schedule import Array
from . import by_ratio, by_timestep, published
from .grid import Grid, GridOptions


def _linspace(o: GridOptions, n: int) -> Array:
    every = n == o.t_max + 1  # all trained timesteps: there is none to stop short of
    t = by_timestep.linspace(o.t_max, n, closed=o.closed or every)
    return np.round(t) if o.whole and n <= o.t_max + 1 else t  # of more, some would be the same


def _closed(known: Sequence[float]) -> Callable[[GridOptions, int], Array]:
    return lambda _, n: published.closed(known, n)


LISTS = (
    ("ays_11", "the published levels of Align Your Steps, the last too", published.AYS, "align_your_steps_11"),
    ("ays_32", "32 levels of Align Your Steps, as in Forge", published.AYS_32, "align_your_steps_32"),
    ("ays_gits", "Align Your Steps GITS, as in Forge", published.AYS_GITS, "align_your_steps_gits"),
)
"""Lists whose last level is a level of the run: (name, description, lists, another name)."""

GRIDS: dict[str, Grid] = {
    grid.name: grid
    for grid in (
        Grid("linspace", "even in t, from full noise to t = 0; whole timesteps where the sampler's are", _linspace),
        Grid(
            "leading",
            "whole strides from t = 0 up; Stable Diffusion's default, never starts at full noise",
            lambda o, n: by_timestep.leading(o.t_max, n, offset=o.offset, closed=o.closed),
        ),
        Grid(
            "trailing",
            "whole strides from full noise down",
            lambda o, n: by_timestep.trailing(o.t_max, n),
            aliases=("turbo",),
        ),
        Grid(
            "normal",
            "even in t, both ends, sigma interpolated",
            lambda o, n: by_timestep.linspace(o.t_max, n, t_min=o.t_min),
            aliases=("uniform",),
        ),
        Grid(
            "sgm_uniform",
            "even in t, stopping one step short of t = 0",
            lambda o, n: by_timestep.linspace(o.t_max, n, t_min=o.t_min, closed=False),
            aliases=("sgmuniform",),
        ),
        Grid(
            "simple",
            "every (T / n)-th trained timestep from full noise",
            lambda o, n: by_timestep.simple(o.t_max, n, t_min=o.t_min),
        ),
        Grid(
            "ddim_uniform",
            "whole strides from t = 1 up, as DDIM's authors",
            lambda o, n: by_timestep.ddim_uniform(o.t_max, n, t_min=o.t_min),
            aliases=("ddim",),
        ),
        Grid(
            "karras",
            "even in sigma^(1/7)",
            lambda o, n, **own: by_ratio.karras(o.low, o.high, n, **own),
            ratios=True,
            aliases=("use_karras_sigmas", "k", "ka"),
            options={"rho": 7.0},
        ),
        Grid(
            "exponential",
            "even in log sigma, both ends",
            lambda o, n: by_ratio.exponential(o.low, o.high, n),
            ratios=True,
            aliases=("use_exponential_sigmas", "lu", "lu_lambdas", "use_lu_lambdas", "lambdas"),
        ),
        Grid(
            "polyexponential",
            "a power in log sigma; rho = 1 is exponential",
            lambda o, n, **own: by_ratio.polyexponential(o.low, o.high, n, **own),
            ratios=True,
            options={"rho": 1.0},
        ),
        Grid(
            "lambda_uniform",
            "even in log-SNR, DPM-Solver's own",
            lambda o, n: by_ratio.lambda_uniform(o.low, o.high, n),
            ratios=True,
            aliases=("logsnr",),
        ),
        Grid(
            "kl_optimal",
            "even in arctan sigma",
            lambda o, n: by_ratio.kl_optimal(o.low, o.high, n),
            ratios=True,
        ),
        Grid(
            "laplace",
            "Laplace(0, 0.5) quantiles in log sigma",
            lambda o, n, **own: by_ratio.laplace(o.low, o.high, n, **own),
            ratios=True,
            options={"mu": 0.0, "beta": 0.5},
        ),
        Grid(
            "beta",
            "Beta(0.6, 0.6) quantiles in t",
            lambda o, n, **own: by_timestep.beta(o.t_max, n, **own),
            options={"a": 0.6, "b": 0.6},
        ),
        Grid(
            "beta_whole",
            "Beta(0.6, 0.6) quantiles in whole timesteps, as in ComfyUI",
            lambda o, n, **own: by_timestep.beta_whole(o.t_max, n, t_min=o.t_min, **own),
            options={"a": 0.6, "b": 0.6},
        ),
        Grid(
            "beta57",
            "Beta(0.5, 0.7) quantiles in t",
            lambda o, n, **own: by_timestep.beta(o.t_max, n, **own),
            options={"a": 0.5, "b": 0.7},
        ),
        Grid(
            "beta_sigmas",
            "Beta(0.6, 0.6) quantiles in sigma",
            lambda o, n, **own: by_ratio.beta_ratio(o.low, o.high, n, **own),
            ratios=True,
            aliases=("use_beta_sigmas", "betas"),
            options={"a": 0.6, "b": 0.6},
        ),
        Grid(
            "cosine",
            "a half cosine in sigma",
            lambda o, n: by_ratio.cosine(o.low, o.high, n),
            ratios=True,
            affine=True,
        ),
        Grid(
            "linear_quadratic",
            "slow, then quadratic in sigma; for flow matching",
            lambda o, n, **own: by_ratio.linear_quadratic(o.high, n, **own),
            ratios=True,
            affine=True,
            options={"threshold": 0.025},
        ),
        Grid(
            "bong_tangent",
            "two arctangent arcs in sigma",
            lambda o, n: by_ratio.bong_tangent(o.low, o.high, n),
            ratios=True,
            affine=True,
        ),
        Grid(
            "ays",
            "Align Your Steps for SD 1.x",
            lambda _, n: published.align_your_steps(n),
            ratios=True,
            aliases=("align_your_steps", "ays_sd", "ays_sd15", "align_your_steps_sd15"),
        ),
        Grid(
            "ays_sdxl",
            "Align Your Steps for SDXL",
            lambda _, n: published.align_your_steps(n, family="sdxl"),
            ratios=True,
            aliases=("align_your_steps_sdxl",),
        ),
        *(
            Grid(
                f"{name}{suffix}", f"{told}{model}", _closed(lists[family]), ratios=True, aliases=(f"{alias}{suffix}",)
            )
            for name, told, lists, alias in LISTS
            for family, suffix, model in (("sd", "", ""), ("sdxl", "_sdxl", ", for SDXL"))
        ),
        Grid("gits", "GITS for SD 1.x", lambda _, n: published.gits(n), ratios=True),
    )
}


def list_grids() -> list[Grid]:
    """Every grid by name, with a description."""
    return list(GRIDS.values())


def spellings() -> dict[str, Grid]:
    """Every name and alias in lower case, its words joined by underscores."""
    return {name: grid for grid in GRIDS.values() for name in (grid.name, *grid.aliases)}


def get_grid(name: str) -> Grid:
    """The grid called `name`, whatever its case and word separators.

    Raises:
        UnknownNameError: listing the closest names.
    """
    known = spellings()
    key = re.sub(r"[\s_-]+", "_", name.strip().lower())
    if key not in known:
        raise UnknownNameError("grid", name, known)
    return known[key]
