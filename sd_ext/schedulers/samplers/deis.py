"""Exponential multistep on eps: LMS and DEIS.

In rho = sigma / alpha the diffusion ODE is d(x / alpha) = eps d rho, so that a step is

    x' = (alpha' / alpha) x + alpha' int_rho^rho' P(u(rho)) d rho

with P the polynomial through the last predictions as a function of some u. Everything here is this integral, exact;
only u differs: rho itself (LMS, iPNDM-v, DEIS's rho-AB), log rho (DEIS as in Diffusers) or the timestep t (DEIS's tAB).

Source: Zhang & Chen 2023, arXiv 2204.13902 (DEIS), eq. 14-15 for t and section 3.3 (proposition 3) for rho.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from ...errors import InputError
from ..base import TableScheduler
from ..info import SamplerInfo
from ..plan import StepOutput
from ..schedule import Array, Levels, NoiseSchedule
from ..table import Row, Table, build
from ..transfer import transfer
from .first_order import SigmaStart

__all__ = ["DEISMultistepScheduler", "LMSDiscreteScheduler"]

Variable = Literal["rho", "log_rho", "t"]

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
_S, _W = (_NODES + 1) / 2, _WEIGHTS / 2  # Gauss-Legendre on [0, 1]

Rule = Callable[[Levels, int, NoiseSchedule | None], tuple[Array, Array]]
"""(levels, i, schedule) -> (values of u, weights) of a quadrature over d rho on step i."""


def _in_rho(levels: Levels, i: int, _: NoiseSchedule | None) -> tuple[Array, Array]:
    start, end = levels.ratio[i : i + 2]
    return start + _S * (end - start), _W * (end - start)


def _in_log_rho(levels: Levels, i: int, _: NoiseSchedule | None) -> tuple[Array, Array]:
    start, end = levels.ratio[i : i + 2]
    v = _S * np.log(start / end)
    return np.log(start) - v, -start * np.exp(-v) * _W * np.log(start / end)


def _in_t(levels: Levels, i: int, schedule: NoiseSchedule | None) -> tuple[Array, Array]:
    """Piece by piece between training timesteps, within which log rho is a straight line in t; below t = 0, where the
    network is told 0, t does not vary.
    """
    assert schedule is not None
    start, end = levels.lam[i : i + 2]
    knots = schedule.lam[(schedule.lam > start) & (schedule.lam < end)]
    edges = np.concatenate([[start], np.sort(knots[np.isfinite(knots)]), [end] if np.isfinite(end) else []])
    lam = (edges[:-1, None] + np.diff(edges)[:, None] * _S).ravel()
    weights = -(np.diff(edges)[:, None] * _W).ravel() * np.exp(-lam)
    if not np.isfinite(end):
        lam = np.concatenate([lam, edges[-1] - np.log(_S)])
        weights = np.concatenate([weights, -np.exp(-edges[-1]) * _W])
    return _times(schedule.at_lambda(lam), schedule), weights


def _times(levels: Levels, schedule: NoiseSchedule | None) -> Array:
    assert schedule is not None
    return schedule.time(levels)


RULES: dict[Variable, Rule] = {"rho": _in_rho, "log_rho": _in_log_rho, "t": _in_t}


def _lagrange(nodes: Array, u: Array) -> Array:
    """At points `u`, the polynomials that are 1 at one node and 0 at the others, `(nodes, points)`."""
    others = [np.delete(nodes, j) for j in range(len(nodes))]
    return np.array([((u[:, None] - o) / (node - o)).prod(axis=1) for node, o in zip(nodes, others, strict=True)])


def exponential_adams(
    levels: Levels,
    order: int,
    variable: Variable,
    schedule: NoiseSchedule | None = None,
    *,
    lower_order_final: bool = False,
) -> Table:
    """The polynomial in `variable` through the last `order` predictions of eps, integrated exactly.

    Order = `order`, 1 call a step; the first calls use what there is. In log rho, which runs to -infinity at the clean
    end, the step there is first order: the integral stays finite, but its error grew with the order.

    Args:
        variable: "rho", "log_rho" or "t"; "t" needs the `schedule`.
        lower_order_final: below 15 calls, second order in the last call but one and first in the last.
    """
    levels, rows = levels.with_signal(), []
    n, few = len(levels) - 1, lower_order_final and len(levels) - 1 < 15
    u = _times(levels, schedule) if variable == "t" else levels.ratio[:-1] if variable == "rho" else -levels.lam[:-1]
    for i in range(n):
        now = min(order, i + 1, n - i if few else order)
        if variable == "log_rho" and levels.sigma[i + 1] == 0:
            now = 1
        nodes = u[i::-1][:now] if i else u[:1]
        # Levels beyond the trained range share one timestep, and a polynomial takes only one of them.
        distinct = 1 + int(np.cumprod(np.diff(nodes) > 1e-9).sum())
        a, b = transfer(levels, i, "eps")
        if distinct == 1:
            rows.append(Row(a, (b,)))
            continue
        at, weights = RULES[variable](levels, i, schedule)
        p = levels.alpha[i + 1] * _lagrange(nodes[:distinct], at) @ weights
        rows.append(Row(a, tuple(p.tolist())))
    return build(levels, rows, "eps")


class LMSDiscreteScheduler(SigmaStart):
    """LMS, Adams-Bashforth for the steps as they are, in sigma / alpha; see `exponential_adams` in rho.

    Order 1 to 4 (`max_order`), 1 call a step. Source: k-diffusion's sample_lms.

    Args:
        max_order: the most predictions used, 1 to 4.
    """

    max_order: int = 4

    def _setup(self) -> None:
        super()._setup()
        self._choice("max_order", (1, 2, 3, 4))

    def _table(self, levels: Levels, eta: float) -> Table:
        return exponential_adams(levels, self.config["max_order"], "rho")

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        order: int | None = None,
        return_dict: bool = True,
        *,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
    ) -> StepOutput | Any:
        """As `TableScheduler.step`, in Diffusers' order, and what Diffusers does not have by keyword only.

        Args:
            order: what the config has as `max_order`, or None.

        Raises:
            InputError: as there, and for another order, which belongs to the constructor.
        """
        if order not in (None, self.config["max_order"]) or isinstance(order, bool):
            raise InputError(
                f"LMSDiscreteScheduler: step(order={order!r}) differs from the config's {self.config['max_order']}; "
                f"make the scheduler with max_order={order!r}"
            )
        return self._step(model_output, timestep, sample, generator, variance_noise, return_dict)


class DEISMultistepScheduler(TableScheduler):
    """DEIS multistep; see `exponential_adams`.

    Order 1 to 4 (`solver_order`), 1 call a step. Source: arXiv 2204.13902, prop. 3; in t, eq. 14-15.

    Args:
        solver_order: 1 to 4.
        algorithm_type: "deis"; those of DPM-Solver configs are taken for it.
        solver_type: "logrho"; those of other solvers' configs are taken for it.
        variable: what the polynomial is a polynomial of: "log_rho", as in Diffusers, "rho" (rho-AB) or "t" (tAB).
        lower_order_final: lower the order in the last two calls of runs below 15 calls.
    """

    solver_order: int = 2
    algorithm_type: str = "deis"
    solver_type: str = "logrho"
    variable: str = "log_rho"
    lower_order_final: bool = True

    _closed_grid: ClassVar[bool] = False
    _flow_flag: ClassVar[bool | None] = True

    def _setup(self) -> None:
        super()._setup()
        self._choice("solver_order", (1, 2, 3, 4))
        self._choice("variable", tuple(RULES))
        algorithms = ("deis", "dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++")
        self._choice_or_default("algorithm_type", algorithms, ("data_prediction", "noise_prediction"))
        self._choice_or_default("solver_type", ("logrho",), ("midpoint", "heun", "bh1", "bh2"))
        self.register_to_config(algorithm_type="deis")

    def _table(self, levels: Levels, eta: float) -> Table:
        config = self.config
        return exponential_adams(
            levels,
            config["solver_order"],
            config["variable"],
            self.schedule,
            lower_order_final=config["lower_order_final"],
        )


_PAPER = "arXiv 2204.13902"


def _info(name: str, order: int, where: str, aliases: tuple[str, ...] = (), note: str = "", **options) -> SamplerInfo:
    options = {"solver_order": order, **options}
    return SamplerInfo(name, DEISMultistepScheduler, order, f"{_PAPER}, {where}", aliases, options=options, note=note)


SAMPLERS = (
    SamplerInfo("lms", LMSDiscreteScheduler, 4, "k-diffusion", ("linear multistep", "k lms", "lms discrete")),
    _info("deis 2", 2, "prop. 3", ("deis 2m",), note="Diffusers' default", variable="log_rho"),
    _info(
        "deis", 3, "prop. 3", ("deis 3", "deis 3m", "deis logrho", "deis log-rho", "deis multistep"), variable="log_rho"
    ),
    _info("deis rho-ab", 3, "prop. 3", ("deis rhoab",), variable="rho", lower_order_final=False),
    _info("deis t-ab", 3, "eq. 14-15", ("deis tab",), "polynomials in t", variable="t", lower_order_final=False),
)
