"""The exponential kernel: how much a prediction that varies over a step weighs at its end.

With s = (l - lambda_i) / h running from 0 to 1 over the step, k the exponent of the kernel over the whole step and A
the scale of the end, the diffusion ODE and SDE are solved by

    x' = a x + A int_0^1 k e^{-k (1 - s)} p(s) ds + noise N(0, I)

    form                            p     k            A                  a                         noise
    DPM-Solver++                    x0    h            alpha'             sigma'/sigma              0
    with SDE strength eta           x0    (1 + eta) h  alpha'             sigma'/sigma e^-(eta h)   c, below
    ancestral, noise std            x0    h to down    alpha'             down/sigma                std
    DPM-Solver                      eps   -h           sigma'             alpha'/alpha              0
    ancestral, noise std            eps   -h to down   down               alpha'/alpha              std
    SDE-DPM-Solver, strength eta    eps   -h           (1 + eta) sigma'   alpha'/alpha              d, below

with c = sigma' sqrt(1 - e^-(2 eta h)), d = sigma' sqrt(eta (e^2h - 1)), down^2 = sigma'^2 - std^2. Samplers differ in
the polynomial p(s) they put through predictions, and in how exactly they integrate it.

Sources: Lu et al. 2022, arXiv 2206.00927 (DPM-Solver, eq. 3.4 and 4.1) and arXiv 2211.01095 (DPM-Solver++, eq. 8-12,
SDE forms in appendix A); eta = tau^2 of SA-Solver (arXiv 2309.05019, eq. 6) and k-diffusion's eta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .schedule import LEAST_SIGNAL, Array, Levels
from .table import Basis
from .transfer import transfer


@dataclass(frozen=True)
class Kernel:
    """One step's numbers, in the letters of the table above; its moments are A mu_n, with mu_n = int_0^1 k e^{-k(1-s)}
    s^n ds, which is what a prediction that grows as s^n weighs.

    Args:
        a: weight of x.
        noise: standard deviation of the noise that the step adds.
        k: exponent of the kernel over the whole step; negative on eps, infinite to or from an end without noise or
            without signal.
        total: A mu_0, the weight of a constant prediction.
        scale: A.
    """

    a: float
    noise: float
    k: float
    total: float
    scale: float

    @classmethod
    def of(cls, levels: Levels, i: int, j: int, basis: Basis, *, eta: float = 0.0, std: float = 0.0) -> Kernel:
        """From level i to level j. Exact at both ends: alpha_i = 0 (h = inf) and, for x0 forms, sigma_j = 0.

        Args:
            eta: strength of the SDE, 0 the ODE, 1 the reverse-time SDE; x0 basis.
            std: ancestral noise, which the deterministic part leaves room for; not together with eta.
        """
        alpha, sigma, alpha_next = levels.alpha[i], levels.sigma[i], levels.alpha[j]
        down = math.sqrt(max(0.0, levels.sigma[j] ** 2 - std**2))
        a, total = transfer(levels, i, basis, std, j)
        decay = (down / alpha_next) * (alpha / sigma)  # e^-h
        h = -math.log(decay) if decay > 0 else math.inf
        if basis == "eps":
            return cls(a, std, -h, total, down)
        if not eta:
            return cls(a, std, h, total, alpha_next)
        kept = decay**eta
        noise = down * math.sqrt(max(0.0, 1 - kept**2))
        return cls(a * kept, noise, (1 + eta) * h, alpha_next * (1 - decay * kept), alpha_next)

    @classmethod
    def sde_eps(cls, levels: Levels, i: int, j: int, eta: float = 1.0) -> Kernel:
        """SDE-DPM-Solver from level i to level j; its noise grows with the step, so it is right for small steps only.

        Steps of infinite length take no noise: relative to sigma' = 0 or alpha = 0 it would be infinite.

        Args:
            eta: strength of the SDE, 0 the ODE, 1 the reverse-time SDE.
        """
        ode = cls.of(levels, i, j, "eps")
        if levels.sigma[j] == 0 or levels.alpha[i] <= LEAST_SIGNAL:
            return ode
        grown = levels.sigma[i] * levels.alpha[j] / levels.alpha[i]  # sigma' e^h
        noise = math.sqrt(eta * max(0.0, grown**2 - levels.sigma[j] ** 2))
        return cls(ode.a, noise, ode.k, (1 + eta) * ode.total, (1 + eta) * levels.sigma[j])

    def moments(self, n: int) -> Array:
        """A mu_0 ... A mu_{n-1}, shape `(n,)`: by mu_n = 1 - n mu_{n-1} / k, or by a series where k is small and that
        recursion would lose digits.
        """
        values = [self.total]
        for m in range(1, n):
            values.append(self._series(m) if abs(self.k) < 0.5 else self._recursion(m, values[-1]))
        return np.array(values)

    def _recursion(self, n: int, before: float) -> float:
        return self.scale - (n * before / self.k if math.isfinite(self.k) else 0.0)

    def _series(self, n: int) -> float:
        """mu_n = k n! sum_m (-k)^m / (n + m + 1)!, which converges fast for small k."""
        term, total = self.k / (n + 1), 0.0
        for m in range(20):
            total += term
            term *= -self.k / (n + m + 2)
        return self.scale * total

    def interpolate(self, nodes: Sequence[float]) -> tuple[float, ...]:
        """Weights of predictions that integrate the polynomial through them exactly.

        Args:
            nodes: s where the predictions were made: 0 is the step's beginning, earlier ones are negative. One at -inf
                (alpha = 0) is infinitely far and gets weight 0.
        """
        near = np.isfinite(nodes)
        powers = np.vander(np.asarray(nodes, float)[near], increasing=True).T
        weights = np.zeros(len(near))
        weights[near] = np.linalg.solve(powers, self.moments(len(powers)))
        return tuple(weights.tolist())

    @property
    def first(self) -> float:
        """A mu_1."""
        return float(self.moments(2)[1])

    @property
    def second(self) -> float:
        """A mu_2."""
        return float(self.moments(3)[2])
