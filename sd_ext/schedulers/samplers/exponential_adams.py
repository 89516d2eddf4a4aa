"""ABNorsett: the polynomial through the last x0 predictions, integrated exactly under the exponential kernel."""

from __future__ import annotations

import math
from typing import ClassVar

from ..base import TableScheduler
from ..info import SamplerInfo
from ..kernel import Kernel
from ..schedule import NO_SIGNAL, Levels
from ..table import Row, Table, build

__all__ = ["ABNorsettScheduler"]


def abnorsett(levels: Levels, order: int = 3, *, lower_order_final: bool = True) -> Table:
    """Exponential Adams-Bashforth methods on x0, for steps of any length.

    Order = `order`, 1 call a step. Order 2 is RES multistep, order 3 DPM++ 3M as derived (`exact_third_order`), without
    the lower orders at the end. Other names: ETD Adams-Bashforth, abnorsett_2m to 4m, res_2m, res_3m (RES4LYF). Source:
    Norsett 1969 (Lecture Notes in Math. 109); Hochbruck & Ostermann 2010 (Acta Numerica 19), section 2.7.

    Args:
        levels: n + 1 levels, the end included.
        order: 1 to 4.
        lower_order_final: below 15 calls, second order in the last call but one. The step to a clean end is of first
            order anyway: it is infinitely long.
    """
    n, lam, rows = len(levels) - 1, levels.lam, []
    for i in range(n):
        kernel = Kernel.of(levels, i, i + 1, "x0")
        seen = sum(alpha >= NO_SIGNAL for alpha in levels.alpha[: i + 1])
        now = min(order, max(seen, 1), 2 if lower_order_final and n < 15 and i == n - 2 else order)
        if not math.isfinite(kernel.k) or (levels.alpha[i] < NO_SIGNAL):
            now = 1
        nodes = [(lam[i - j] - lam[i]) / (lam[i + 1] - lam[i]) for j in range(now)] if now > 1 else [0.0]
        rows.append(Row(kernel.a, kernel.interpolate(nodes) if now > 1 else (kernel.total,)))
    return build(levels, rows, "x0")


class ABNorsettScheduler(TableScheduler):
    """Exponential Adams-Bashforth; see `abnorsett`.

    Order 2 to 4 (`solver_order`), 1 call a step. Source: Norsett 1969.

    Args:
        solver_order: 2, 3 or 4.
        lower_order_final: below 15 calls, second order in the last call but one.
    """

    solver_order: int = 3
    lower_order_final: bool = True

    _closed_grid: ClassVar[bool] = False

    def _setup(self) -> None:
        super()._setup()
        self._choice("solver_order", (2, 3, 4))

    def _table(self, levels: Levels, eta: float) -> Table:
        return abnorsett(levels, self.config["solver_order"], lower_order_final=self.config["lower_order_final"])


def _info(order: int, *aliases: str, note: str = "") -> SamplerInfo:
    source = "Norsett 1969; Hochbruck & Ostermann 2010, section 2.7"
    options = {"solver_order": order}
    return SamplerInfo(f"abnorsett {order}", ABNorsettScheduler, order, source, aliases, options=options, note=note)


SAMPLERS = (
    _info(2, "abnorsett 2m", note="RES multistep"),
    _info(3, "abnorsett 3m", "res 3m", "res 3m ode", note="DPM++ 3M, integrated exactly"),
    _info(4, "abnorsett 4m", "res 4m"),
)
