"""Grids as formulas in the noise of k-diffusion, sigma / alpha, between `low` and `high`: `(n,)`, falling.

On a flow schedule those with `Grid.affine` are formulas in the flow's own sigma instead.
"""

from __future__ import annotations

import numpy as np
from scipy.special import betaincinv

from ..schedule import Array


def karras(low: float, high: float, n: int, *, rho: float = 7.0) -> Array:
    """Even in (sigma / alpha)^(1/rho) from `high` to `low` (Karras et al. 2022, arXiv 2206.00364, eq. 5)."""
    return np.linspace(high ** (1 / rho), low ** (1 / rho), n) ** rho


def exponential(low: float, high: float, n: int) -> Array:
    """Even in log(sigma / alpha) from `high` to `low`, both ends included."""
    return np.exp(np.linspace(np.log(high), np.log(low), n))


def polyexponential(low: float, high: float, n: int, *, rho: float = 1.0) -> Array:
    """A polynomial in log(sigma / alpha), as in k-diffusion: low (high / low)^(u^rho) for u even from 1 to 0.

    rho = 1 is `exponential`; above it, steps gather at `low`.
    """
    return low * (high / low) ** (np.linspace(1, 0, n) ** rho)


def lambda_uniform(low: float, high: float, n: int) -> Array:
    """Even in lambda, stopping one step short of `low` (Lu et al. 2022, arXiv 2206.00927, section 3.4)."""
    return np.exp(np.linspace(np.log(high), np.log(low), n + 1))[:-1]


def beta_ratio(low: float, high: float, n: int, *, a: float = 0.6, b: float = 0.6) -> Array:
    """Quantiles of a Beta(a, b) distribution in sigma / alpha: what Diffusers' `use_beta_sigmas` does."""
    return low + (high - low) * betaincinv(a, b, np.linspace(1, 0, n))


def kl_optimal(low: float, high: float, n: int) -> Array:
    """Even in arctan(sigma / alpha) from `high` to `low`.

    Closed form of the optimal schedule that Align Your Steps searches for (Sabour et al. 2024, arXiv 2404.14507), where
    the data are Gaussian with unit variance.
    """
    return np.tan(np.linspace(np.arctan(high), np.arctan(low), n))


def laplace(low: float, high: float, n: int, *, mu: float = 0.0, beta: float = 0.5) -> Array:
    """Quantiles of a Laplace(mu, beta) distribution of log(sigma / alpha) (Hang & Gu 2024, arXiv 2407.03297).

    Its ends are infinite: 1e-5 keeps them finite and `low` and `high` cut them, as in ComfyUI.
    """
    u = np.linspace(0, 1, n)
    tail = np.log(1 - 2 * np.abs(0.5 - u) + 1e-5)
    return np.clip(np.exp(mu - beta * np.sign(0.5 - u) * tail), low, high)


def cosine(low: float, high: float, n: int) -> Array:
    """A half cosine in the square root of progress, between the ends: (1 + cos(pi sqrt(p))) / 2 for p from 0 to 1."""
    return low + (high - low) * (1 + np.cos(np.pi * np.sqrt(np.linspace(0, 1, n)))) / 2


def linear_quadratic(high: float, n: int, *, threshold: float = 0.025) -> Array:
    """high (1 - s): s grows linearly to `threshold` over the first half of the steps, then quadratically to 1.

    Slope and value are continuous where the halves meet. From Mochi 1 and LTX-Video, for flow matching, where the
    first half retraces the first steps of a much finer uniform grid.
    """
    if n == 1:
        return np.array([high])
    i, half = np.arange(n), n // 2
    bend = (1 - threshold * n / half) * (np.maximum(i - half, 0) / (n - half)) ** 2
    return high * (1 - threshold * i / half - bend)


def _arc(start: float, end: float, m: int, *, slope: float, pivot: float) -> Array:
    """`m` points of -arctan(slope (x - pivot)) at x = 0 ... m - 1, stretched to run from `start` to `end`."""
    curve = -np.arctan(slope * (np.arange(m) - pivot))
    return end + (start - end) * (curve - curve[-1]) / (curve[0] - curve[-1])


def bong_tangent(low: float, high: float, n: int) -> Array:
    """Two arcs of an arctangent that meet midway between the ends, at six tenths of the steps.

    The second ends at the clean end itself, which is left out.
    """
    points = n + 2
    meeting, slope, middle = int(0.6 * points), 8 / points, (low + high) / 2
    first = _arc(high, middle, meeting, slope=slope, pivot=meeting)[:-1] if n > 1 else np.array([high])
    second = _arc(middle, low, points - meeting, slope=slope, pivot=0)
    return np.concatenate([first, second])[:n]
