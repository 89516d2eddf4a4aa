"""Exponential Runge-Kutta methods of orders 3 and 4 on x0, and Lawson's, which they improve on.

For u = x / alpha the diffusion ODE in lambda is u' = -u + x0, whose linear part exponential methods solve exactly.
Their weights are phi functions of the step h: phi_n(-h) = int_0^1 e^{-h (1 - s)} s^(n - 1) / (n - 1)! ds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from ..info import SamplerInfo
from ..kernel import Kernel
from ..multistage import MultiCallScheduler, Stage, between, chain, multistage
from ..schedule import Levels
from ..table import Row, Table
from .exponential_rk import RES_NODES
from .singlestep import solver_stages

__all__ = ["ExponentialRungeKuttaScheduler", "LawsonScheduler"]

Weights = tuple[float, ...]


def _phi(kernel: Kernel) -> tuple[float, float, float]:
    """phi_1, phi_2 and phi_3 of a kernel's own step."""
    mu = kernel.moments(3) / kernel.scale / kernel.k
    return float(mu[0]), float(mu[1]), float(mu[2]) / 2


def _final(phi: Sequence[float]) -> tuple[float, float, float]:
    """What Simpson's rule becomes under the kernel: weights at the beginning, in the middle and at the end."""
    one, two, three = phi
    return one - 3 * two + 4 * three, 4 * two - 8 * three, -two + 4 * three


def _etdrk3(half: Sequence[float], full: Sequence[float]) -> list[Weights]:
    """Cox & Matthews 2002, eq. 23-25; c = 1/2, 1."""
    first, middle, last = _final(full)
    return [(half[0] / 2,), (-full[0], 2 * full[0]), (first, middle, last)]


def _etdrk4(half: Sequence[float], full: Sequence[float]) -> list[Weights]:
    """Cox & Matthews 2002, eq. 26-29; c = 1/2, 1/2, 1. The third call goes on from the first by half a step."""
    first, middle, last = _final(full)
    inner = half[0] / 2
    return [
        (inner,),
        (0.0, inner),
        (full[0] - 2 * inner, 0.0, 2 * inner),
        (first, middle / 2, middle / 2, last),
    ]


def _krogstad(half: Sequence[float], full: Sequence[float]) -> list[Weights]:
    """Krogstad 2005, eq. 51 (ETDRK4-B); c = 1/2, 1/2, 1."""
    first, middle, last = _final(full)
    return [
        (half[0] / 2,),
        (half[0] / 2 - half[1], half[1]),
        (full[0] - 2 * full[1], 0.0, 2 * full[1]),
        (first, middle / 2, middle / 2, last),
    ]


def _res_5s(half: Sequence[float], full: Sequence[float]) -> list[Weights]:
    """Hochbruck & Ostermann 2005, eq. 5.19, which has order 4 for stiff problems too; c = 1/2, 1/2, 1, 1/2."""
    first, middle, last = _final(full)
    inner = half[1] / 2 - full[2] + full[1] / 4 - half[2] / 2
    late = half[1] / 4 - inner
    return [
        (half[0] / 2,),
        (half[0] / 2 - half[1], half[1]),
        (full[0] - 2 * full[1], full[1], full[1]),
        (half[0] / 2 - 2 * inner - late, inner, inner, late),
        (first, 0.0, 0.0, last, middle),
    ]


Method = Callable[[Sequence[float], Sequence[float]], list[Weights]]
METHODS: dict[str, tuple[Method, tuple[float, ...], int]] = {
    "etdrk3": (_etdrk3, (1 / 2, 1), 3),
    "etdrk4": (_etdrk4, (1 / 2, 1 / 2, 1), 4),
    "krogstad": (_krogstad, (1 / 2, 1 / 2, 1), 4),
    "res 5s": (_res_5s, (1 / 2, 1 / 2, 1, 1 / 2), 4),
}
"""By name: weights in units of the step, from the phi functions of half a step and of the whole; where the further
calls fall; order."""


def _shorter(size: int) -> tuple[str, tuple[float, ...]]:
    """What a step of fewer calls is made with, and where its further calls fall."""
    names = {3: "etdrk3", 4: "krogstad"}
    return (names[size], METHODS[names[size]][1]) if size in names else ("", RES_NODES[2][: size - 1])


def nodes_of(method: str, size: int) -> tuple[float, ...]:
    """Where the further calls of a step of `size` calls fall, as fractions of it in lambda."""
    own = METHODS[method][1]
    return own if size == len(own) + 1 else _shorter(size)[1]


def _phi_rows(levels: Levels, i: int, size: int, method: str) -> Sequence[Row]:
    """A step of `size` calls of a method, or of fewer calls than it has."""
    kernels = [Kernel.of(levels, i, i + k, "x0") for k in range(1, size + 1)]
    if size < 3:
        return chain(solver_stages(kernels, RES_NODES[2][: size - 1], "heun", [0.0] * size))
    own = method if size == len(METHODS[method][1]) + 1 else _shorter(size)[0]
    h, weights = kernels[-1].k, METHODS[own][0](_phi(kernels[0]), _phi(kernels[-1]))
    return chain([Stage(k.a, tuple(k.scale * h * w for w in row)) for k, row in zip(kernels, weights, strict=True)])


def exponential_rk(levels: Levels, method: str) -> Table:
    """Exponential Runge-Kutta methods. Order: the method's. Source: see the functions of `METHODS`."""
    return multistage(levels, lambda levels, i, size: _phi_rows(levels, i, size, method), "x0")


class ExponentialRungeKuttaScheduler(MultiCallScheduler):
    """Exponential Runge-Kutta methods of orders 3 and 4; see `exponential_rk`.

    Order 3 or 4, 3 to 5 calls a step. Source: Cox & Matthews 2002, Krogstad 2005, Hochbruck & Ostermann 2005; the last
    for diffusion models: arXiv 2308.02157.

    Args:
        method: "etdrk3", "etdrk4", "krogstad" or "res 5s".
    """

    method: str = "etdrk4"

    def _setup(self) -> None:
        super()._setup()
        self._choice("method", tuple(METHODS))
        self._most = len(METHODS[self.config["method"]][1]) + 1  # type: ignore[misc]

    def _nodes(self, steps: Levels, i: int, size: int) -> Levels:
        return between(self.schedule, steps, i, nodes_of(self.config["method"], size))

    def _table(self, levels: Levels, eta: float) -> Table:
        return exponential_rk(levels, self.config["method"])


LAWSON: dict[int, tuple[tuple[Weights, ...], tuple[float, ...]]] = {
    2: (((1 / 2,), (0.0, 1.0)), (1 / 2,)),
    4: (((1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)), (1 / 2, 1 / 2, 1.0)),
}
"""By order: the tableau's rows, the last of which is the end's, and where the further calls fall."""


def lawson(levels: Levels, order: int = 4) -> Table:
    """Lawson's methods: the midpoint method or RK4 for x / sigma in lambda, which takes the linear part along exactly.

    Order 2 or 4, as many calls a step. Their weights do not add up: of a known picture the steps leave something, up to
    the last one, so that coarse steps are worse than those of the methods above. Source: Lawson 1967 (SIAM J. Numer.
    Anal. 4).
    """
    rows_of, fractions = LAWSON[order]

    def step(levels: Levels, i: int, size: int) -> Sequence[Row]:
        if size < order:
            return _phi_rows(levels, i, size, "etdrk3")
        h, at, stages = float(levels.lam[i + size] - levels.lam[i]), (0.0, *fractions, 1.0), []
        for j, row in enumerate(rows_of, 1):
            kept = (levels.alpha[i + j] * math.exp((at[k] - at[j]) * h) for k in range(len(row)))
            own = tuple(float(h * w * of) for w, of in zip(row, kept, strict=True))
            stages.append(Stage(float(levels.sigma[i + j] / levels.sigma[i]), own))
        return chain(stages)

    return multistage(levels, step, "x0", "nothing")


class LawsonScheduler(MultiCallScheduler):
    """Lawson's methods; see `lawson`.

    Order 2 or 4 (`lawson_order`), as many calls a step. Source: Lawson 1967.

    Args:
        lawson_order: 2 or 4, the calls of a step; not `solver_order`, of which other solvers' configs have more.
    """

    lawson_order: int = 4

    def _setup(self) -> None:
        super()._setup()
        self._choice("lawson_order", tuple(LAWSON))
        self._most = self.config["lawson_order"]  # type: ignore[misc]

    def _nodes(self, steps: Levels, i: int, size: int) -> Levels:
        own = LAWSON[self._most][1]
        return between(self.schedule, steps, i, own if size == self._most else nodes_of("etdrk3", size))

    def _table(self, levels: Levels, eta: float) -> Table:
        return lawson(levels, self.config["lawson_order"])


_COX = "Cox & Matthews 2002 (J. Comput. Phys. 176)"
_RES = "Hochbruck & Ostermann 2005, eq. 5.19; arXiv 2308.02157"


def _info(method: str, source: str, *aliases: str, note: str = "") -> SamplerInfo:
    _, further, order = METHODS[method]
    calls, options = str(len(further) + 1), {"method": method}
    return SamplerInfo(
        method, ExponentialRungeKuttaScheduler, order, source, aliases, calls=calls, options=options, note=note
    )


SAMPLERS = (
    _info("etdrk3", _COX, "etdrk3 3s", "etd3rk"),
    _info("etdrk4", _COX, "etdrk4 4s", "cox-matthews", "etd4rk"),
    _info("krogstad", "Krogstad 2005 (J. Comput. Phys. 203)", "krogstad 4s", "etdrk4-b"),
    _info("res 5s", _RES, "hochbruck-ostermann", note="order 4, for stiff problems too"),
    SamplerInfo(
        "lawson 2",
        LawsonScheduler,
        2,
        "Lawson 1967",
        ("lawson2a 2s", "lawson 2s"),
        calls="2",
        options={"lawson_order": 2},
        note="a known picture is exact at the end only",
    ),
    SamplerInfo(
        "lawson 4",
        LawsonScheduler,
        4,
        "Lawson 1967",
        ("lawson4 4s", "lawson 4s"),
        calls="4",
        options={"lawson_order": 4},
        note="a known picture is exact at the end only",
    ),
)
