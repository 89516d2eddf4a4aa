"""DPM-Solver and DPM-Solver++ singlestep: steps of one, two or three calls, every call on a level of the grid.

Sources: Lu et al. 2022, arXiv 2206.00927, algorithms 1, 2 and appendix C.1; arXiv 2211.01095, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from ..base import TableScheduler
from ..info import SamplerInfo
from ..kernel import Kernel
from ..multistage import Stage, chain, multistage, starts_in_noise
from ..schedule import Levels
from ..table import Row, Table
from .ddpm import VARIANCES
from .dpm_solver import OTHER_ALGORITHMS, OTHER_TYPES, Algorithm, SolverType, basis_of

__all__ = ["DPMSolverSinglestepScheduler"]


def singlestep_stages(calls: int, order: int, sigma_end: float, lower: bool = False) -> list[int]:
    """Steps of `order` calls, then what is left (arXiv 2206.00927, appendix C.1: for order 3, 3 ... 3 2 1, 3 ... 3 1 or
    3 ... 3 2). The last call before sigma = 0 stands alone: at 3n - 1 calls Diffusers divides by zero there.

    Args:
        lower: to a last step of one call also where all could be of `order` and the end is not sigma = 0.
    """
    sizes = [order] * (calls // order) + ([calls % order] if calls % order else [])
    if (sigma_end == 0 or (lower and calls % order == 0)) and sizes and sizes[-1] > 1:
        sizes[-1:] = [sizes[-1] - 1, 1]
    return [stage for size in sizes for stage in range(size)]


def in_steps(levels: Levels, order: int, lower: bool = False) -> Levels:
    """Levels, the end included, with the stages of singlestep solvers; a step from pure noise is a single call.

    Args:
        order, lower: see `singlestep_stages`.
    """
    single = [0] if starts_in_noise(levels) else []
    calls, sigma_end = len(levels) - 1 - len(single), float(levels.sigma[-1])
    return levels.with_stages(single + singlestep_stages(calls, order, sigma_end, lower))


def solver_stages(
    kernels: Sequence[Kernel], nodes: Sequence[float], solver_type: SolverType, noise: Sequence[float]
) -> list[Stage]:
    """The stages of one DPM-Solver step of 1, 2 or 3 calls, deterministic or stochastic.

    "midpoint" takes half of mu_0 for mu_1 in steps of two calls, as published; steps of three integrate what they
    interpolate: the line through the first two predictions for the third call, and for the end the line through the
    first and third ("midpoint", as published) or the parabola through all three ("heun").

    Args:
        kernels: from the step's beginning to each further call, and to its end.
        nodes: where the further calls fall, as fractions of the step.
        noise: standard deviation of the noise drawn between successive calls.
    """
    end = kernels[-1]
    weights: list[tuple[float, ...]] = [(kernels[0].total,)]
    if len(kernels) == 2:
        slope = (end.total / 2 if solver_type == "midpoint" else end.first) / nodes[0]
        weights.append((end.total - slope, slope))
    if len(kernels) == 3:
        r1, r2 = nodes
        weights.append(kernels[1].interpolate([0, r1 / r2]))
        first, third = end.interpolate([0, r2])
        weights.append((first, 0.0, third) if solver_type == "midpoint" else end.interpolate([0, r1, r2]))
    return [Stage(k.a, p, std) for k, p, std in zip(kernels, weights, noise, strict=True)]


def singlestep(levels: Levels, algorithm: Algorithm = "dpmsolver++", solver_type: SolverType = "midpoint") -> Table:
    """DPM-Solver++ 2S and 3S, DPM-Solver-2 and -3: a step's calls fall on successive levels of the grid.

    Order: the calls of a step (2 or 3), as many calls a step. "sde-dpmsolver++" is the reverse-time SDE by the same
    stages, its noise that of one Brownian path.
    """
    basis, eta = basis_of(algorithm), float(algorithm.startswith("sde"))

    def step(levels: Levels, i: int, size: int) -> list[Row]:
        kernels = [Kernel.of(levels, i, i + k, basis, eta=eta) for k in range(1, size + 1)]
        noise = [Kernel.of(levels, i + k, i + k + 1, basis, eta=eta).noise for k in range(size)]
        lam = levels.lam
        nodes = [(lam[i + k] - lam[i]) / (lam[i + size] - lam[i]) for k in range(1, size)]
        return chain(solver_stages(kernels, nodes, solver_type, noise))

    return multistage(levels, step, basis)


class DPMSolverSinglestepScheduler(TableScheduler):
    """DPM-Solver and DPM-Solver++ singlestep, orders 1 to 3; see `singlestep`.

    Order 1 to 3 (`solver_order`), as many calls a step. Source: arXiv 2206.00927, alg. 1-2, on eps; arXiv
    2211.01095, alg. 1, on x0.

    Args:
        solver_order: 1, 2 or 3, the calls of a step.
        algorithm_type: "dpmsolver++", "dpmsolver" or "sde-dpmsolver++".
        solver_type: "midpoint" or "heun".
        lower_order_final: end with a step of one call also where the end has noise. To a clean end it is so anyway.
        variance_type: what the network gives besides its prediction, which is left out: any of DDPM's.
    """

    solver_order: int = 2
    algorithm_type: str = "dpmsolver++"
    solver_type: str = "midpoint"
    lower_order_final: bool = False
    variance_type: str | None = None

    _closed_grid: ClassVar[bool] = False
    _flow_flag: ClassVar[bool | None] = True

    def _setup(self) -> None:
        super()._setup()
        self._choice("solver_order", (1, 2, 3))
        algorithms, others = ("dpmsolver++", "dpmsolver", "sde-dpmsolver++"), (*OTHER_ALGORITHMS, "sde-dpmsolver")
        self._choice_or_default("algorithm_type", algorithms, others)
        self._choice_or_default("solver_type", ("midpoint", "heun"), OTHER_TYPES)
        self._choice("variance_type", VARIANCES)

    def _place(self, calls: int) -> Levels:
        return self._explicit_stages(self._grid_levels(calls))

    def _explicit_stages(self, levels: Levels) -> Levels:
        return in_steps(levels, self.config["solver_order"], self.config["lower_order_final"])

    def _table(self, levels: Levels, eta: float) -> Table:
        return singlestep(levels, self.config["algorithm_type"], self.config["solver_type"])


def _info(name: str, order: int, aliases: tuple[str, ...], note: str = "", **options) -> SamplerInfo:
    source = "arXiv 2211.01095, alg. 1" if "++" in options["algorithm_type"] else f"arXiv 2206.00927, alg. {order - 1}"
    return SamplerInfo(
        name,
        DPMSolverSinglestepScheduler,
        order,
        source,
        aliases,
        calls=str(order),
        options={"solver_order": order, **options},
        note=note,
    )


SAMPLERS = (
    _info("dpm++ 2s", 2, ("dpmpp 2s",), algorithm_type="dpmsolver++"),
    _info("dpm++ 3s", 3, ("dpmpp 3s",), algorithm_type="dpmsolver++"),
    _info("dpm-solver 2s", 2, ("dpm-solver 2", "dpm 2s"), algorithm_type="dpmsolver"),
    _info("dpm-solver 3s", 3, ("dpm-solver 3", "dpm 3s"), algorithm_type="dpmsolver"),
    _info(
        "dpm fast",
        3,
        ("dpm-solver fast",),
        "steps of 3 calls on the lambda_uniform grid",
        algorithm_type="dpmsolver",
        grid="lambda_uniform",
    ),
)
