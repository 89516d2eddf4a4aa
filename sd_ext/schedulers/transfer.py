"""The one-prediction step between two levels: what every sampler is built from.

With x0 (or eps) held fixed over the step the diffusion ODE is solved exactly: DDIM (Song et al. 2021, arXiv 2010.02502,
eq. 12), which is also Euler's method in sigma / alpha (arXiv 2206.00364) and DPM-Solver-1 (arXiv 2206.00927, eq. 4.1).
"""

from __future__ import annotations

import numpy as np

from .schedule import Levels
from .table import Basis


def posterior_std(alpha: float, sigma: float, alpha_next: float, sigma_next: float) -> float:
    """Standard deviation of q(x_s | x_t, x0), s the next level (arXiv 2010.02502, eq. 16; any alpha and sigma)."""
    if sigma_next == 0:
        return 0.0
    kept = alpha / alpha_next * sigma_next / sigma
    return sigma_next * float(np.sqrt(max(0.0, 1.0 - kept**2)))


def fresh_noise(levels: Levels, i: int, eta: float, j: int | None = None) -> float:
    """Standard deviation of an ancestral step's noise from level i to level j = i + 1: eta times the posterior's, at
    most what level j can hold.
    """
    j = i + 1 if j is None else j
    posterior = posterior_std(levels.alpha[i], levels.sigma[i], levels.alpha[j], levels.sigma[j])
    return min(eta * posterior, float(levels.sigma[j]))


def transfer(levels: Levels, i: int, basis: Basis, std: float = 0.0, j: int | None = None) -> tuple[float, float]:
    """The step from level i to level j = i + 1 with the prediction held fixed: x' = a x + b p.

    Args:
        levels: of the run.
        basis: what p is, "x0" or "eps".
        std: noise that will be added afresh; the step leaves room for it.

    Returns:
        (a, b).
    """
    j = i + 1 if j is None else j
    alpha, sigma, alpha_next, sigma_next = levels.alpha[i], levels.sigma[i], levels.alpha[j], levels.sigma[j]
    direction = float(np.sqrt(max(0.0, sigma_next**2 - std**2)))
    if basis == "x0":
        return direction / sigma, alpha_next - alpha * direction / sigma
    return alpha_next / alpha, direction - sigma * alpha_next / alpha
