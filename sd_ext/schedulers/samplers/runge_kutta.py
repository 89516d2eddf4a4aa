"""The classical explicit Runge-Kutta methods, in sigma / alpha on eps: any tableau is one.

With y = x / alpha and rho = sigma / alpha the diffusion ODE is dy / drho = eps, so that a method's tableau holds as it
is printed in textbooks, and its calls fall at fractions of the step in rho.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..info import SamplerInfo
from ..multistage import MultiCallScheduler, Stage, chain, multistage
from ..schedule import Levels
from ..table import Row, Table
from ..transfer import transfer
from .first_order import SigmaStart

__all__ = ["RungeKuttaScheduler"]


@dataclass(frozen=True)
class Tableau:
    """An explicit method (Butcher's notation).

    Args:
        order: of convergence.
        a: weights of the calls so far at each further call, the first of which is the second.
        b: weights of all calls at the end.
        source: where it was published.
    """

    order: int
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    source: str

    @property
    def c(self) -> tuple[float, ...]:
        """Where the further calls fall, as fractions of the step."""
        return tuple(sum(row) for row in self.a)


_R4 = 5**0.5  # Ralston's fourth-order method of least error
_KUTTA, _RALSTON = "Kutta 1901 (Z. Math. Phys. 46)", "Ralston 1962 (Math. Comp. 16)"
TABLEAUS = {
    "euler": Tableau(1, (), (1.0,), "Euler 1768"),
    "midpoint": Tableau(2, ((1 / 2,),), (0, 1), "Runge 1895 (Math. Ann. 46)"),
    "ralston 2s": Tableau(2, ((2 / 3,),), (1 / 4, 3 / 4), _RALSTON),
    "heun 3s": Tableau(3, ((1 / 3,), (0, 2 / 3)), (1 / 4, 0, 3 / 4), "Heun 1900 (Z. Math. Phys. 45)"),
    "kutta 3s": Tableau(3, ((1 / 2,), (-1, 2)), (1 / 6, 2 / 3, 1 / 6), _KUTTA),
    "ralston 3s": Tableau(3, ((1 / 2,), (0, 3 / 4)), (2 / 9, 1 / 3, 4 / 9), _RALSTON),
    "houwen-wray 3s": Tableau(3, ((8 / 15,), (1 / 4, 5 / 12)), (1 / 4, 0, 3 / 4), "van der Houwen 1972; Wray 1990"),
    "ssprk3": Tableau(3, ((1,), (1 / 4, 1 / 4)), (1 / 6, 1 / 6, 2 / 3), "Shu & Osher 1988 (J. Comput. Phys. 77)"),
    "rk4": Tableau(4, ((1 / 2,), (0, 1 / 2), (0, 0, 1)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), _KUTTA),
    "rk 3/8": Tableau(4, ((1 / 3,), (-1 / 3, 1), (1, -1, 1)), (1 / 8, 3 / 8, 3 / 8, 1 / 8), _KUTTA),
    "ralston 4s": Tableau(
        4,
        (
            (2 / 5,),
            ((-2889 + 1428 * _R4) / 1024, (3785 - 1620 * _R4) / 1024),
            ((-3365 + 2094 * _R4) / 6040, (-975 - 3046 * _R4) / 2552, (467040 + 203968 * _R4) / 240845),
        ),
        (
            (263 + 24 * _R4) / 1812,
            (125 - 1000 * _R4) / 3828,
            (3426304 + 1661952 * _R4) / 5924787,
            (30 - 4 * _R4) / 123,
        ),
        _RALSTON,
    ),
    "merson": Tableau(
        4,
        ((1 / 3,), (1 / 6, 1 / 6), (1 / 8, 0, 3 / 8), (1 / 2, 0, -3 / 2, 2)),
        (1 / 6, 0, 0, 2 / 3, 1 / 6),
        "Merson 1957",
    ),
    "dormand-prince 5": Tableau(
        5,
        (
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
        ),
        (35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        "Dormand & Prince 1980 (J. Comput. Appl. Math. 6)",
    ),
}
"""By name."""

SHORTER = {1: "euler", 2: "ralston 2s", 3: "ralston 3s", 4: "rk4", 5: "merson"}
"""What a step of fewer calls than the method's is made with: a method of that many calls."""


def tableau(method: str, size: int) -> Tableau:
    """The tableau of a step of `size` calls of a method."""
    own = TABLEAUS[method]
    return own if size == len(own.b) else TABLEAUS[SHORTER[size]]


def explicit(levels: Levels, method: str) -> Table:
    """Steps of an explicit Runge-Kutta method, as many calls a step as its tableau has rows.

    Order: the tableau's. Source: see `TABLEAUS`.
    """

    def step(levels: Levels, i: int, size: int) -> Sequence[Row]:
        of, stages = tableau(method, size), []
        for j, weights in enumerate((*of.a, of.b), 1):
            # x_j / alpha_j = x / alpha + h sum_l w_l eps_l; the end's h is the step's in rho, whatever alpha is.
            scale = levels.alpha[i + j] / levels.alpha[i]
            h = transfer(levels, i, "eps", j=i + size)[1] * levels.alpha[i + j] / levels.alpha[i + size]
            stages.append(Stage(float(scale), tuple(float(h * w) for w in weights)))
        return chain(stages)

    return multistage(levels, step, "eps")


class RungeKuttaScheduler(SigmaStart, MultiCallScheduler):
    """Explicit Runge-Kutta methods; see `explicit`.

    Order 2 to 5, 2 to 6 calls a step. Source: see `TABLEAUS`; Butcher 2008 has them all.

    Args:
        method: which; see `TABLEAUS`.
    """

    method: str = "rk4"

    def _setup(self) -> None:
        super()._setup()
        self._choice("method", tuple(TABLEAUS))
        self._most = len(TABLEAUS[self.config["method"]].b)  # type: ignore[misc]

    def _nodes(self, steps: Levels, i: int, size: int) -> Levels:
        ratio, fractions = steps.ratio, np.array(tableau(self.config["method"], size).c)
        inner = self.schedule.at_lambda(-np.log(ratio[i] + fractions * (ratio[i + 1] - ratio[i])))
        end = steps[i + 1 : i + 2]  # a call at the step's end is at that level to the bit
        fields = (np.where(fractions == 1, getattr(end, f), getattr(inner, f)) for f in ("t", "alpha", "sigma"))
        return Levels(*fields)

    def _table(self, levels: Levels, eta: float) -> Table:
        return explicit(levels, self.config["method"])


def _info(method: str, *aliases: str, note: str = "") -> SamplerInfo:
    of = TABLEAUS[method]
    return SamplerInfo(
        method,
        RungeKuttaScheduler,
        of.order,
        of.source,
        aliases,
        calls=str(len(of.b)),
        options={"method": method},
        note=note,
    )


SAMPLERS = (
    _info("midpoint", "midpoint 2s", "rk2", note="its middle half-way in sigma; dpm2's is at the geometric mean"),
    _info("ralston 2s", "ralston 2"),
    _info("heun 3s", "heun 3"),
    _info("kutta 3s", "kutta 3", "rk3"),
    _info("ralston 3s", "ralston 3", "bogacki-shampine", "bogacki-shampine 3s", "bogacki-shampine 4s", "bs23", "bosh3"),
    _info("houwen-wray 3s", "houwen-wray"),
    _info("ssprk3", "ssprk3 3s", "ssp rk3", note="its third call goes back up, half-way"),
    _info("rk4", "rk4 4s", "runge kutta 4", "runge-kutta", "classic rk4"),
    _info("rk 3/8", "rk38", "rk38 4s", "3/8 rule"),
    _info("ralston 4s", "ralston 4"),
    _info(
        "dormand-prince 5", "dormand-prince", "dormand-prince 6s", "dopri5", "rk5", note="steps as asked, not adaptive"
    ),
)
