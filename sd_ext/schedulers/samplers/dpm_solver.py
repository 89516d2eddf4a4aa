"""DPM-Solver and DPM-Solver++ multistep: polynomials in lambda under the exponential kernel.

Sources: Lu et al. 2022, arXiv 2206.00927 (DPM-Solver) and arXiv 2211.01095 (DPM-Solver++, SDE forms in appendix A).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from ..base import TableScheduler
from ..info import SamplerInfo
from ..kernel import Kernel
from ..schedule import Levels
from ..table import Basis, Row, Table, build
from .ddpm import VARIANCES

__all__ = ["DPMSolverMultistepScheduler"]

Algorithm = Literal["dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"]
SolverType = Literal["midpoint", "heun"]

OTHER_ALGORITHMS = ("deis", "data_prediction", "noise_prediction")
OTHER_TYPES = ("bh1", "bh2", "logrho")
"""What DEIS, SA-Solver and UniPC have under these names; from their configs these classes take their defaults."""


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
    eta: float = 1.0,
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
        eta: strength of "sde-dpmsolver++", 0 the deterministic solver, 1 the reverse-time SDE.
    """
    basis = basis_of(algorithm)
    levels = levels if basis == "x0" else levels.with_signal()
    n, lam, rows = len(levels) - 1, levels.lam, []
    for i in range(n):
        few = lower_order_final and n < 15
        last = i == n - 1 and (few or euler_at_final or levels.sigma[-1] == 0)
        now = 1 if last else min(order, i + 1, 2 if few and i == n - 2 else 3)
        if algorithm == "sde-dpmsolver":
            kernel = Kernel.sde_eps(levels, i, i + 1)
        else:
            kernel = Kernel.of(levels, i, i + 1, basis, eta=eta if algorithm.startswith("sde") else 0.0)
        h = lam[i + 1] - lam[i]
        if now == 1:
            p: tuple[float, ...] = (kernel.total,)
        elif now == 2:
            p = _linear(kernel, (lam[i] - lam[i - 1]) / h, solver_type)
        else:
            p = _quadratic(kernel, (lam[i] - lam[i - 1]) / h, (lam[i - 1] - lam[i - 2]) / h, exact)
        rows.append(Row(kernel.a, p, kernel.noise))
    return build(levels, rows, basis, "mean" if algorithm == "sde-dpmsolver" else "marginal")


class DPMSolverMultistepScheduler(TableScheduler):
    """DPM-Solver and DPM-Solver++ multistep, orders 1 to 3, and their SDE forms; see `multistep`.

    Order 1 to 3 (`solver_order`), 1 call a step; the SDE forms with fresh noise. Source: arXiv 2206.00927, eq. 4.1,
    on eps; arXiv 2211.01095, eq. 9, alg. 2 and app. A, on x0.

    Args:
        solver_order: 1, 2 or 3.
        algorithm_type: "dpmsolver++", "dpmsolver", "sde-dpmsolver++" or "sde-dpmsolver".
        solver_type: "midpoint" or "heun", for order 2.
        lower_order_final: lower the order in the last two calls of runs below 15 calls.
        euler_at_final: first order in the last call.
        exact_third_order: third order as derived, in place of the published second-order form.
        eta: strength of "sde-dpmsolver++", 0 to 1.
        variance_type: what the network gives besides its prediction, which is left out: any of DDPM's.
    """

    solver_order: int = 2
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = True
    euler_at_final: bool = False
    exact_third_order: bool = False
    eta: float = 1.0
    variance_type: str | None = None

    _closed_grid: ClassVar[bool] = False
    _flow_flag: ClassVar[bool | None] = True

    def _setup(self) -> None:
        super()._setup()
        self._choice("solver_order", (1, 2, 3))
        algorithms = ("dpmsolver++", "dpmsolver", "sde-dpmsolver++", "sde-dpmsolver")
        self._choice_or_default("algorithm_type", algorithms, OTHER_ALGORITHMS)
        self._choice_or_default("solver_type", ("midpoint", "heun"), OTHER_TYPES)
        self._within("eta", 0, 1)
        self._choice("variance_type", VARIANCES)

    def _table(self, levels: Levels, eta: float) -> Table:
        config = self.config
        return multistep(
            levels,
            config["solver_order"],
            config["algorithm_type"],
            config["solver_type"],
            exact=config["exact_third_order"],
            lower_order_final=config["lower_order_final"],
            euler_at_final=config["euler_at_final"],
            eta=config["eta"],
        )


_DPM, _DPMPP = "arXiv 2206.00927", "arXiv 2211.01095"


def _info(name: str, order: int, source: str, aliases: tuple[str, ...] = (), note: str = "", **options) -> SamplerInfo:
    sde = options["algorithm_type"].startswith("sde")
    return SamplerInfo(
        name,
        DPMSolverMultistepScheduler,
        order,
        source,
        aliases,
        stochastic=sde,
        options=options,
        note=note,
    )


_EPS: dict[str, Any] = {"algorithm_type": "dpmsolver"}
_X0: dict[str, Any] = {"algorithm_type": "dpmsolver++"}
_SDE: dict[str, Any] = {"algorithm_type": "sde-dpmsolver++"}
_SDE3 = {**_SDE, "solver_order": 3, "solver_type": "heun"}
"""k-diffusion's 3M SDE integrates the line of its second step."""
_EXACT = {"exact_third_order": True}

SAMPLERS = (
    _info("dpm-solver 1", 1, f"{_DPM}, eq. 4.1", note="the step of DDIM", solver_order=1, **_EPS),
    _info("dpm-solver 2m", 2, _DPM, ("dpm 2m",), solver_order=2, **_EPS),
    _info("dpm-solver 3m", 2, _DPM, ("dpm 3m",), "as published", solver_order=3, **_EPS),
    _info("dpm-solver 3m exact", 3, _DPM, solver_order=3, **_EXACT, **_EPS),
    _info("dpm++ 1", 1, f"{_DPMPP}, eq. 9", note="the step of DDIM", solver_order=1, **_X0),
    _info("dpm++ 2m", 2, f"{_DPMPP}, alg. 2", ("dpmpp 2m", "dpm-solver++"), solver_order=2, **_X0),
    _info("dpm++ 3m", 2, _DPMPP, ("dpmpp 3m",), "as published; small errors at usual counts", solver_order=3, **_X0),
    _info("dpm++ 3m exact", 3, _DPMPP, ("dpmpp 3m exact",), solver_order=3, **_EXACT, **_X0),
    _info(
        "dpm++ 2m sde",
        2,
        f"{_DPMPP}, app. A",
        ("dpmpp 2m sde", "dpmpp 2m sde gpu"),
        solver_order=2,
        **_SDE,
    ),
    _info(
        "dpm++ 2m sde heun",
        2,
        f"{_DPMPP}, app. A",
        ("dpmpp 2m sde heun", "dpmpp 2m sde heun gpu"),
        solver_order=2,
        solver_type="heun",
        **_SDE,
    ),
    _info(
        "dpm++ 3m sde",
        2,
        f"{_DPMPP}, app. A",
        ("dpmpp 3m sde", "dpmpp 3m sde gpu"),
        "as k-diffusion's",
        **_SDE3,
    ),
    _info(
        "dpm++ 3m sde exact",
        3,
        f"{_DPMPP}, app. A",
        ("dpmpp 3m sde exact",),
        **_EXACT,
        **_SDE3,
    ),
)
