"""A Gaussian mixture with everything known: the posterior mean, the marginals, and the exact solution of the ODE."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp

from sd_ext.schedulers.schedule import Levels
from sd_ext.schedulers.table import P0, STASH, Table, X

SOLVED: dict[tuple, tuple[Mixture, np.ndarray]] = {}
"""Exact solutions by what they are of: many samplers are compared with the same ones."""


@dataclass(frozen=True)
class Mixture:
    """x0 ~ sum_k weights_k N(means_k, stds_k^2 I)."""

    weights: np.ndarray  # (K,)
    means: np.ndarray  # (K, D)
    stds: np.ndarray  # (K,)

    @classmethod
    def random(cls, components: int, dimensions: int, seed: int, spread: float = 1.0) -> Mixture:
        rng = np.random.default_rng(seed)
        weights = rng.uniform(0.5, 1.5, components)
        return cls(
            weights / weights.sum(),
            spread * rng.standard_normal((components, dimensions)),
            rng.uniform(0.2, 0.5, components),
        )

    def x0(self, x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        """E[x0 | x_t = x], `(batch, D)`."""
        var = (alpha * self.stds) ** 2 + sigma**2  # (K,)
        off = x[:, None, :] - alpha * self.means  # (B, K, D)
        log_w = np.log(self.weights) - 0.5 * (off**2).sum(-1) / var - 0.5 * x.shape[1] * np.log(var)
        w = np.exp(log_w - log_w.max(1, keepdims=True))
        w /= w.sum(1, keepdims=True)
        per_component = self.means + off * (alpha * self.stds**2 / var)[:, None]
        return (w[..., None] * per_component).sum(1)

    def eps(self, x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        """E[eps | x_t = x]."""
        return (x - alpha * self.x0(x, alpha, sigma)) / sigma

    def sample(self, n: int, alpha: float, sigma: float, seed: int) -> np.ndarray:
        """Draws from the marginal of x_t, `(n, D)`."""
        rng = np.random.default_rng(seed)
        k = rng.choice(len(self.weights), n, p=self.weights)
        x0 = self.means[k] + self.stds[k, None] * rng.standard_normal((n, self.means.shape[1]))
        return alpha * x0 + sigma * rng.standard_normal(x0.shape)

    def moments(self, alpha: float, sigma: float) -> tuple[np.ndarray, np.ndarray]:
        """Mean `(D,)` and covariance `(D, D)` of x_t."""
        mean = self.weights @ self.means
        centred = self.means - mean
        dims = len(mean)
        cov = (self.weights[:, None] * centred).T @ centred + np.eye(dims) * (self.weights @ self.stds**2)
        return alpha * mean, alpha**2 * cov + sigma**2 * np.eye(dims)

    def solve(self, x: np.ndarray, levels: Levels) -> np.ndarray:
        """The probability-flow ODE from levels[0] to levels[-1], by SciPy's DOP853 in sigma / alpha."""
        case = (id(self), x.tobytes(), *levels[:1].alpha, *levels[-1:].alpha, levels.ratio[0], levels.ratio[-1])
        if case not in SOLVED:
            SOLVED[case] = self, self._solve(x, levels)
        return SOLVED[case][1]

    def _solve(self, x: np.ndarray, levels: Levels) -> np.ndarray:
        start, end = levels.ratio[0], levels.ratio[-1]

        def slope(log_ratio: float, y: np.ndarray) -> np.ndarray:
            ratio = np.exp(log_ratio)
            alpha = 1 / np.sqrt(1 + ratio**2)
            return ratio * self.eps(alpha * y.reshape(x.shape), alpha, alpha * ratio).ravel()

        y0 = (x / levels.alpha[0]).ravel()
        done = solve_ivp(slope, (np.log(start), np.log(end)), y0, method="DOP853", rtol=1e-11, atol=1e-12)
        return levels.alpha[-1] * done.y[:, -1].reshape(x.shape)


def run_table(
    table: Table,
    data: Mixture,
    x: np.ndarray,
    seed: int | None = None,
    history: int | None = None,
    free: Mixture | None = None,
) -> np.ndarray:
    """Execute a table as the definition reads, `slots = rows[i] @ slots`, with no code of the package's executor.

    Args:
        free: data of the unconditional predictions, for a table of two fields; `data` if there is none.
        history: predictions beyond this many are replaced by NaN, to show that they are not needed.
    """
    rng = np.random.default_rng(seed)
    slots = np.zeros((table.rows.shape[2], *x.shape))
    slots[X] = x
    for i, row in enumerate(table.rows):
        alpha, sigma = table.levels.alpha[i], table.levels.sigma[i]
        for first, of in zip(range(P0, len(slots) - 1, table.history), (data, free or data), strict=False):
            slots[first + 1 : first + table.history] = slots[first : first + table.history - 1].copy()
            slots[first] = (of.x0 if table.basis == "x0" else of.eps)(slots[X], alpha, sigma)
            if history is not None:
                slots[first + history : first + table.history] = np.nan
        slots[-1] = rng.standard_normal(x.shape) if row[:, -1].any() else 0.0
        slots[: STASH + 1] = np.tensordot(row, _read(row, slots), axes=1)
    return slots[X]


def _read(row: np.ndarray, slots: np.ndarray) -> np.ndarray:
    """Zero-weight slots replaced by zero, so that NaN shows only where it is read."""
    return np.where(row.any(axis=0).reshape(-1, *[1] * (slots.ndim - 1)), slots, 0.0)
