"""ER-SDE: solvers for a family of reverse-time SDEs that one function of the noise level picks."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ..base import TableScheduler
from ..info import SamplerInfo
from ..schedule import Array, Levels
from ..table import Row, Table, build

__all__ = ["ERSDEScheduler"]

_AT, _WEIGHT = np.polynomial.legendre.leggauss(64)


def _sde_4(x: Array) -> Array:
    x = np.minimum(x, 1000.0)  # beyond it phi / x would fall, for which there is no SDE
    return np.log(np.log10(1 + 100 * x**1.5)) - 0.1 * np.log(x)


NOISE_SCALES: dict[str, Callable[[Array], Array]] = {
    "ode": np.zeros_like,
    "sde": np.log,
    "sde_1": lambda x: np.log(np.exp(-1 / x) + 10),
    "sde_2": lambda x: 0.5 * np.log(x),
    "sde_3": lambda x: 1.5 * np.log(x),
    "sde_4": _sde_4,
    "sde_5": lambda x: np.logaddexp(x**0.3, math.log(10)),
}
"""log(phi(x) / x) of the paper's noise scale functions (appendix A.8), x = sigma / alpha > 0:

    ode    x                     the probability-flow ODE
    sde    x^2                   the reverse-time SDE
    sde_1  x (e^(-1/x) + 10)
    sde_2  x^1.5
    sde_3  x^2.5
    sde_4  x^0.9 log10(1 + 100 x^1.5)
    sde_5  x (e^(x^0.3) + 10)    the one in use
"""


def kept_noise(noise_scale: str, eta: float, start: Array | float, end: Array | float) -> Array:
    """Share of the old noise that a step from start to end (sigma / alpha) keeps: the quotient of phi(x) / x at the
    two, to the power eta.
    """
    start, end = np.asarray(start, float), np.asarray(end, float)
    if not eta or noise_scale == "ode":
        return np.ones(np.broadcast_shapes(start.shape, end.shape))
    log = NOISE_SCALES[noise_scale]
    return np.exp(eta * (log(end) - log(start)))


def moments(noise_scale: str, eta: float, start: float, end: float, n: int) -> list[float]:
    """M_0 ... M_{n-1}: weight of x0 = s^m over a step, s running from 0 to 1 evenly in sigma / alpha.

    By parts M_m = 1 - m int_0^1 s^(m-1) phi(end) / phi(x(s)) ds, by Gauss-Legendre quadrature in log x.
    """
    kept = end / start * float(kept_noise(noise_scale, eta, start, end))
    if n == 1 or math.isinf(start):
        return [1 - kept, *[1.0] * (n - 1)]
    half = 0.5 * math.log(start / end)
    x = end * np.exp(half * (_AT + 1))
    s = (start - x) / (start - end)
    # phi(end) / phi(x) ds, with the two factors x of dx and 1 / phi cancelled
    density = _WEIGHT * half * end / (start - end) * kept_noise(noise_scale, eta, x, end)
    return [1 - kept, *(1 - m * float(density @ s ** (m - 1)) for m in range(1, n))]


def er_sde(
    levels: Levels, order: int = 3, noise_scale: str = "sde_5", eta: float = 1.0, *, exact: bool = False
) -> Table:
    """ER-SDE-Solver-1, -2, -3: a Taylor polynomial in sigma / alpha through the last `order` x0 predictions.

    Order: 1, 2, 2 as published, 3 with `exact`; 1 call a step. Other names: er_sde. Source: Cui et al. 2023,
    arXiv 2309.06169, the VP forms of its solvers, and the authors' code. The published third solver takes the first
    difference for the first derivative, which leaves an error of second order, as in DPM-Solver++ 3M; `exact` puts the
    parabola through the predictions. The published code sums the integrals over 100 rectangles; here they are exact to
    rounding.

    A step to a clean end, and one from alpha = 0, is of first order.

    Args:
        noise_scale: one of `NOISE_SCALES`.
        eta: strength of the noise: phi(x) / x is taken to this power. 0 is the ODE whatever the noise scale; with "sde"
            it is the eta of DPM-Solver++ SDE.
        exact: third order as derived.
    """
    rows, ratio = [], levels.ratio
    for i in range(len(levels) - 1):
        start, end, alpha, sigma = ratio[i], ratio[i + 1], levels.alpha[i + 1], levels.sigma[i + 1]
        if sigma == 0:
            rows.append(Row(0.0, (alpha,)))
            continue
        kept = float(kept_noise(noise_scale, eta, start, end))
        known = min(order, i + 1, int(np.isfinite(ratio[: i + 1]).sum()) or 1)
        m = moments(noise_scale, eta, start, end, known)
        nodes = [(start - ratio[i - k]) / (start - end) for k in range(1, known)]
        p = _newton(m, nodes, exact)
        a = kept * sigma / levels.sigma[i]
        # What rounding leaves of the constant's weight goes to the newest prediction.
        newest = alpha - a * levels.alpha[i] - alpha * sum(p[1:])
        rows.append(Row(a, (newest, *(alpha * w for w in p[1:])), noise=sigma * math.sqrt(max(0.0, 1 - kept**2))))
    return build(levels, rows, "x0")


def _newton(m: list[float], nodes: list[float], exact: bool) -> tuple[float, ...]:
    """Weights of the predictions at s = 0 and at earlier `nodes`, by divided differences."""
    if not nodes:
        return (m[0],)
    first = np.array([1.0, -1.0, 0.0]) / -nodes[0]
    weights = np.array([m[0], 0.0, 0.0]) + m[1] * first
    if len(nodes) == 2:
        before = np.array([0.0, 1.0, -1.0]) / (nodes[0] - nodes[1])
        weights += (m[2] - (nodes[0] * m[1] if exact else 0.0)) * (first - before) / -nodes[1]
    return tuple(weights[: len(nodes) + 1].tolist())


class ERSDEScheduler(TableScheduler):
    """ER-SDE-Solver; see `er_sde`.

    Order 1 to 3, 1 call a step, with fresh noise. Source: arXiv 2309.06169.

    Args:
        solver_order: 1, 2 or 3.
        noise_scale: the noise scale function, see `NOISE_SCALES`.
        eta: strength of the noise, 0 deterministic; 1 as published.
        exact_third_order: third order as derived, in place of the published second-order form.
    """

    solver_order: int = 3
    noise_scale: str = "sde_5"
    eta: float = 1.0
    exact_third_order: bool = False

    def _setup(self) -> None:
        super()._setup()
        self._choice("solver_order", (1, 2, 3))
        self._choice("noise_scale", tuple(NOISE_SCALES))
        self._within("eta", 0, math.inf)

    def _table(self, levels: Levels, eta: float) -> Table:
        config = self.config
        return er_sde(
            levels,
            config["solver_order"],
            config["noise_scale"],
            config["eta"],
            exact=config["exact_third_order"],
        )


def _info(name: str, order: int, aliases: tuple[str, ...], note: str = "", **options) -> SamplerInfo:
    return SamplerInfo(
        name,
        ERSDEScheduler,
        order,
        "arXiv 2309.06169",
        aliases,
        stochastic=True,
        options=options,
        note=note,
    )


SAMPLERS = (
    _info("er sde", 2, ("er-sde", "er sde 3"), "as published", solver_order=3),
    _info("er sde exact", 3, ("er-sde exact",), solver_order=3, exact_third_order=True),
    _info("er sde 2", 2, ("er-sde 2",), solver_order=2),
    _info("er sde 1", 1, ("er-sde 1",), solver_order=1),
)
