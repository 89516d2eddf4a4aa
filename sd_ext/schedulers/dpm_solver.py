"""The DPM-Solver family: polynomials in lambda under an exponential kernel.

With s = (l - lambda_i) / h running from 0 to 1 over the step, k the exponent of the kernel over the whole step and A
the scale of the end, a step is

    x' = a x + A int_0^1 k e^{-k (1 - s)} p(s) ds [+ noise]

    form                       p     k     A          a                 noise
    DPM-Solver++               x0    h     alpha'     sigma'/sigma
    DPM-Solver                 eps   -h    sigma'     alpha'/alpha
    SDE-DPM-Solver++           x0    2h    alpha'     sigma'/sigma e^-h   sigma' sqrt(1 - e^-2h)
    SDE-DPM-Solver             eps   -h    2 sigma'   alpha'/alpha        sigma' sqrt(e^2h - 1)

and the solvers differ only in the polynomial p(s) through past predictions and in how exactly they integrate it.
Sources: Lu et al. 2022, arXiv 2206.00927 (DPM-Solver, eq. 3.4 and 4.1) and arXiv 2211.01095 (DPM-Solver++, eq. 8-12,
SDE forms in appendix A).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .first_order import transfer
from .multistage import two_stage
from .schedule import Levels
from .table import Basis, Row, Table, build

Algorithm = Literal["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"]
SolverType = Literal["midpoint", "heun"]


@dataclass(frozen=True)
class Kernel:
    """One step's a, noise and A mu_n, with mu_n = int_0^1 k e^{-k(1-s)} s^n ds, for the form of `algorithm`."""

    a: float
    noise: float
    k: float
    total: float
    """A mu_0, the weight of a constant prediction."""
    scale: float
    """A."""

    @classmethod
    def of(cls, levels: Levels, i: int, j: int, algorithm: Algorithm) -> Kernel:
        """From level i to level j. Exact at both ends: alpha_i = 0 (h = inf) and, for x0 forms, sigma_j = 0."""
        alpha, sigma, alpha_next, sigma_next = levels.alpha[i], levels.sigma[i], levels.alpha[j], levels.sigma[j]
        basis = basis_of(algorithm)
        a, total = transfer(levels, i, basis, j=j)
        decay = (sigma_next / alpha_next) * (alpha / sigma)  # e^-h
        h = -math.log(decay) if decay > 0 else math.inf
        if algorithm == "dpmsolver++":
            return cls(a, 0.0, h, total, alpha_next)
        if algorithm == "dpmsolver":
            return cls(a, 0.0, -h, total, sigma_next)
        if algorithm == "sde-dpmsolver++":
            noise = sigma_next * math.sqrt(max(0.0, 1 - decay**2))
            return cls(a * decay, noise, 2 * h, alpha_next * (1 - decay**2), alpha_next)
        if sigma_next == 0:  # relative to sigma' the noise would be infinite; the clean end takes none
            return cls(a, 0.0, -h, total, 0.0)
        grown = sigma * alpha_next / alpha  # sigma' e^h
        noise = math.sqrt(max(0.0, grown**2 - sigma_next**2))
        return cls(a, noise, -h, 2 * total, 2 * sigma_next)

    @property
    def first(self) -> float:
        """A mu_1."""
        return self.scale - (self.total / self.k if math.isfinite(self.k) else 0.0)

    @property
    def second(self) -> float:
        """A mu_2."""
        return self.scale - (2 * self.first / self.k if math.isfinite(self.k) else 0.0)


def basis_of(algorithm: Algorithm) -> Basis:
    """x0 for the ++ forms, eps for the others."""
    return "x0" if algorithm.endswith("++") else "eps"


def _linear(kernel: Kernel, r: float, solver_type: SolverType) -> tuple[float, float]:
    """Weights of (p0, p1) for a line through them, p1 a distance r h behind; midpoint takes mu_0 / 2 for mu_1."""
    slope = (kernel.total / 2 if solver_type == "midpoint" else kernel.first) / r
    return kernel.total + slope, -slope


def _quadratic(kernel: Kernel, r0: float, r1: float, exact: bool) -> tuple[float, float, float]:
    """Weights of (p0, p1, p2) for a parabola through them, spaced r0 h and r1 h.

    The published third-order solvers (official code, Diffusers) halve the quadratic moment; that makes them second
    order, with a smaller error at usual step counts. `exact` integrates the parabola.
    """
    curve = (kernel.second if exact else kernel.second / 2) / (r0 + r1)
    back = kernel.first * r0 / (r0 + r1)
    newest, older = (kernel.first + back + curve) / r0, (back + curve) / r1
    return kernel.total + newest, -newest - older, older


def multistep(
    levels: Levels,
    order: int = 2,
    algorithm: Algorithm = "dpmsolver++",
    solver_type: SolverType = "midpoint",
    *,
    exact: bool = False,
    lower_order_final: bool = True,
    euler_at_final: bool = False,
) -> Table:
    """DPM-Solver and DPM-Solver++ multistep, and their SDE forms.

    1 call a step. Order = `order` for 1 and 2; `order=3` is second order as published and third with `exact=True`.
    The SDE forms converge to the same distribution, weakly. Other names: DPM++ 2M, 3M, 2M SDE; dpmpp_2m;
    DPMSolverMultistepScheduler.

    Args:
        levels: n + 1 levels, the end included.
        solver_type: "midpoint" as k-diffusion's 2M, or "heun", which integrates the line exactly.
        lower_order_final: below 15 calls, second order in the last call but one and first in the last.
        euler_at_final: first order in the last call. It is anyway where the end has sigma = 0.
    """
    levels = levels if basis_of(algorithm) == "x0" else levels.with_signal()
    n, lam, rows = len(levels) - 1, levels.lam, []
    for i in range(n):
        few = lower_order_final and n < 15
        last = i == n - 1 and (few or euler_at_final or levels.sigma[-1] == 0)
        now = 1 if last else min(order, i + 1, 2 if few and i == n - 2 else 3)
        kernel = Kernel.of(levels, i, i + 1, algorithm)
        h = lam[i + 1] - lam[i]
        if now == 1:
            p: tuple[float, ...] = (kernel.total,)
        elif now == 2:
            p = _linear(kernel, (lam[i] - lam[i - 1]) / h, solver_type)
        else:
            p = _quadratic(kernel, (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h, exact)
        rows.append(Row(kernel.a, p, kernel.noise))
    return build(levels, rows, basis_of(algorithm), "mean" if algorithm == "sde-dpmsolver" else "marginal")


def singlestep_stages(calls: int, sigma_end: float) -> list[int]:
    """Pairs of calls; a last odd call, and the last before sigma = 0, stands alone (Lu et al. 2022, appendix C.1)."""
    stages = [i % 2 for i in range(calls)]
    if calls % 2 == 0 and sigma_end == 0 and calls:
        stages[-1] = 0
    return stages


def singlestep(levels: Levels, algorithm: Algorithm = "dpmsolver++", solver_type: SolverType = "midpoint") -> Table:
    """DPM-Solver++ 2S (or DPM-Solver-2) singlestep: a pair of calls is one step, the grid's next level its middle.

    Order 2, 2 calls a step. Other names: DPM++ 2S; DPMSolverSinglestepScheduler with solver_order 2. Source: arXiv
    2211.01095, algorithm 1, with the middle at a level of the grid as in Diffusers.
    """

    def second(levels: Levels, i: int) -> Row:
        lam = levels.lam
        kernel = Kernel.of(levels, i, i + 2, algorithm)
        r = (lam[i + 1] - lam[i]) / (lam[i + 2] - lam[i])
        slope = (kernel.total / 2 if solver_type == "midpoint" else kernel.first) / r
        return Row(stash=kernel.a, p=(slope, kernel.total - slope))

    return two_stage(levels, second, basis_of(algorithm))
