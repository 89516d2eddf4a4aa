"""Exponential Runge-Kutta methods on x0 with nodes of their own: 2S a, DPM++ SDE, SEEDS, RES.

The further calls of a step fall at fixed fractions of it in lambda. The stochastic ones solve the reverse-time SDE, of
strength eta, with the noise of one Brownian path: what is drawn up to a call decays on to the step's end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from ...errors import InputError
from ..drop_in import CountsTraining
from ..info import SamplerInfo
from ..kernel import Kernel
from ..multistage import MultiCallScheduler, Stage, ancestral_middle, between, chain, multistage
from ..plan import StepOutput
from ..run import Run
from ..schedule import Levels
from ..table import Row, Table
from ..transfer import fresh_noise
from .dpm_solver import OTHER_TYPES, SolverType
from .singlestep import solver_stages

__all__ = ["DPMSolver2SAncestralScheduler", "DPMSolverSDEScheduler", "RESSinglestepScheduler", "SEEDSScheduler"]

NODES = {2: (1 / 2,), 3: (1 / 3, 2 / 3)}
RES_NODES = {2: (1 / 2,), 3: (1 / 2, 1.0)}


def ancestral_2s(levels: Levels, eta: float = 1.0) -> Table:
    """DPM++ 2S a: the exponential midpoint method to below the next level, then noise up to it.

    Order 2 at eta = 0, 2 calls a step. Other names: DPM++ 2S a, dpmpp_2s_ancestral. Source: arXiv 2211.01095,
    algorithm 1 with r = 1/2, made ancestral in k-diffusion.
    """

    def step(levels: Levels, i: int, size: int) -> list[Row]:
        std = fresh_noise(levels, i, eta, i + size)
        end = Kernel.of(levels, i, i + size, "x0", std=std)
        if size == 1:
            return [Row(end.a, (end.total,), noise=std)]
        middle = Kernel.of(levels, i, i + 1, "x0")
        return chain([Stage(middle.a, (middle.total,)), Stage(end.a, (0.0, end.total), std)])

    return multistage(levels, step, "x0")


def seeds(
    levels: Levels, eta: float = 1.0, solver_type: SolverType = "midpoint", nodes: Mapping[int, Sequence[float]] = NODES
) -> Table:
    """DPM++ SDE and SEEDS: DPM-Solver++ singlestep for the SDE, with 2 or 3 calls a step.

    Order 2 or 3 at eta = 0, as many calls a step. With two calls and "midpoint" this is DPM++ SDE (k-diffusion,
    r = 1/2) and the phi_1 form of SEEDS-2; "heun" is its phi_2 form. k-diffusion draws a step's two noises as
    normalised increments in sigma; here both are the SDE's own. Source: Gonzalez et al. 2023, arXiv 2305.14267,
    algorithms 2 and 3; arXiv 2211.01095, appendix A.
    """

    def step(levels: Levels, i: int, size: int) -> list[Row]:
        kernels = [Kernel.of(levels, i, i + k, "x0", eta=eta) for k in range(1, size + 1)]
        noise = [Kernel.of(levels, i + k, i + k + 1, "x0", eta=eta).noise for k in range(size)]
        return chain(solver_stages(kernels, nodes[size] if size > 1 else (), solver_type, noise))

    return multistage(levels, step, "x0")


def res_singlestep(levels: Levels) -> Table:
    """RES 2S and 3S: exponential Runge-Kutta methods that meet the stiff order conditions.

    Order 2 or 3, as many calls a step. Source: Zhang et al. 2023, arXiv 2308.02157; the tableaus are those of
    Hochbruck & Ostermann 2005 (SIAM J. Numer. Anal. 43, eq. 5.4 and 5.9) with c = (1/2) and c = (1/2, 1).
    """

    def step(levels: Levels, i: int, size: int) -> list[Row]:
        kernels = [Kernel.of(levels, i, i + k, "x0") for k in range(1, size + 1)]
        if size < 3:
            return chain(solver_stages(kernels, RES_NODES[2][: size - 1], "heun", [0.0] * size))
        return chain(_res_3s(*kernels))

    return multistage(levels, step, "x0")


def _res_3s(middle: Kernel, far: Kernel, end: Kernel) -> list[Stage]:
    """The tableau with c2 = 1/2, c3 = 1: gamma = (3 c3^2 - 2 c3) / (2 c2 - 3 c2^2); h phi_2(-c h) = mu_1 / c."""
    c2, c3 = RES_NODES[3]
    gamma = (3 * c3**2 - 2 * c3) / (2 * c2 - 3 * c2**2)
    a32 = far.scale * (gamma * middle.first / middle.scale + c3 / c2 * far.first / far.scale)
    b3 = end.first / (gamma * c2 + c3)
    b2 = gamma * b3
    return [
        Stage(middle.a, (middle.total,)),
        Stage(far.a, (far.total - a32, a32)),
        Stage(end.a, (end.total - b2 - b3, b2, b3)),
    ]


class DPMSolver2SAncestralScheduler(MultiCallScheduler):
    """DPM++ 2S a; see `ancestral_2s`.

    Order 2, 2 calls a step, with fresh noise. Source: arXiv 2211.01095, alg. 1.

    Args:
        eta: share of the ancestral noise, 0 to 1.
    """

    eta: float = 1.0

    _ranges = (("eta", 0, 1),)

    def _nodes(self, steps: Levels, i: int, size: int) -> Levels:
        return between(self.schedule, steps, i, [ancestral_middle(steps, i, self.config["eta"])])

    def _table(self, levels: Levels, eta: float) -> Table:
        return ancestral_2s(levels, self.config["eta"])


class DPMSolverSDEScheduler(CountsTraining, MultiCallScheduler):
    """DPM++ SDE, two calls a step; see `seeds`.

    Order 2, 2 calls a step, with fresh noise unless eta is 0. Source: arXiv 2211.01095, app. A; with other options
    SEEDS-2, arXiv 2305.14267, alg. 2, or Hochbruck & Ostermann 2005, eq. 5.3.

    Args:
        eta: strength of the SDE, 0 the deterministic solver, 1 the reverse-time SDE.
        solver_type: "midpoint", as published, or "heun", which integrates the line through both predictions.
        node: where the second call falls, as a fraction of the step in lambda, above 0 to 1.
        noise_sampler_seed: of the noise of steps that get no generator: it is that of the seed and of the call.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    eta: float = 1.0
    solver_type: str = "midpoint"
    node: float = 0.5
    noise_sampler_seed: int | None = None

    def _setup(self) -> None:
        super()._setup()
        self._within("eta", 0, 1)
        self._within("node", 0.01, 1)
        self._choice_or_default("solver_type", ("midpoint", "heun"), OTHER_TYPES)
        self._fractions = {**NODES, 2: (self.config["node"],)}

    def _nodes(self, steps: Levels, i: int, size: int) -> Levels:
        if self._fractions[size] == (1,):
            return steps[i + 1 : i + 2]
        return between(self.schedule, steps, i, self._fractions[size])

    def _table(self, levels: Levels, eta: float) -> Table:
        return seeds(levels, self.config["eta"], self.config["solver_type"], self._fractions)

    @property
    def init_noise_sigma(self) -> torch.Tensor:
        """1, a tensor without dimensions on the processor."""
        return torch.tensor(1.0)

    @property
    def not_exportable(self) -> str | None:
        """Why it cannot be exported, if it cannot."""
        return None if self.config["noise_sampler_seed"] is None else "noise_sampler_seed is not in the exported file"

    def _draw(self, x: torch.Tensor, run: Run, generator: Any) -> torch.Tensor:
        seed = self.config["noise_sampler_seed"]
        if generator is None and seed is not None:
            generator = torch.Generator().manual_seed((seed + (run.begin + run.position) * 2**32) % 2**63)
        return super()._draw(x, run, generator)

    def step(  # type: ignore[override]
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
        s_noise: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: torch.Tensor | None = None,
    ) -> StepOutput | Any:
        """As `TableScheduler.step`, in Diffusers' order.

        Args:
            s_noise: 1: a factor on the noise leaves the levels, and is no option here.
        """
        if s_noise != 1:
            raise InputError(f"{type(self).__name__}: step(s_noise={s_noise!r}) must be 1, so that the levels are kept")
        return self._step(model_output, timestep, sample, generator, variance_noise, return_dict)


class SEEDSScheduler(DPMSolverSDEScheduler):
    """SEEDS-3; see `seeds`.

    Order 3, 3 calls a step, with fresh noise. Source: arXiv 2305.14267, alg. 3.
    """

    _most: ClassVar[int] = 3


class RESSinglestepScheduler(MultiCallScheduler):
    """RES 2S and 3S; see `res_singlestep`.

    Order 2 or 3 (`solver_order`), as many calls a step. Source: arXiv 2308.02157.

    Args:
        solver_order: 2 or 3, the calls of a step.
    """

    solver_order: int = 2

    def _setup(self) -> None:
        super()._setup()
        self._choice("solver_order", (2, 3))
        self._most = self.config["solver_order"]  # type: ignore[misc]

    def _nodes(self, steps: Levels, i: int, size: int) -> Levels:
        inner = between(self.schedule, steps, i, RES_NODES[2])
        return inner.then(steps[i + 1 : i + 2]) if size == 3 else inner

    def _table(self, levels: Levels, eta: float) -> Table:
        return res_singlestep(levels)


_SEEDS, _RES = "arXiv 2305.14267", "arXiv 2308.02157"

SAMPLERS = (
    SamplerInfo(
        "dpm++ 2s a",
        DPMSolver2SAncestralScheduler,
        2,
        "arXiv 2211.01095, alg. 1",
        ("dpmpp 2s a", "dpmpp 2s ancestral", "dpm++ 2s ancestral"),
        calls="2",
        stochastic=True,
    ),
    SamplerInfo(
        "dpm++ sde",
        DPMSolverSDEScheduler,
        2,
        "arXiv 2211.01095, app. A",
        ("dpmpp sde", "dpmpp sde gpu", "seeds 2 phi 1"),
        calls="2",
        stochastic=True,
    ),
    SamplerInfo(
        "seeds-2",
        DPMSolverSDEScheduler,
        2,
        f"{_SEEDS}, alg. 2",
        ("seeds 2", "seeds2"),
        calls="2",
        stochastic=True,
        options={"solver_type": "heun"},
        note="its phi_1 form is DPM++ SDE",
    ),
    SamplerInfo(
        "exp heun",
        DPMSolverSDEScheduler,
        2,
        "Hochbruck & Ostermann 2005, eq. 5.3",
        ("exp heun 2 x0", "etd2rk"),
        calls="2",
        options={"solver_type": "heun", "node": 1.0, "eta": 0.0},
        note="Heun's method with the exponential kernel",
    ),
    SamplerInfo(
        "exp heun sde",
        DPMSolverSDEScheduler,
        2,
        _SEEDS,
        ("exp heun 2 x0 sde",),
        calls="2",
        stochastic=True,
        options={"solver_type": "heun", "node": 1.0},
    ),
    SamplerInfo("seeds-3", SEEDSScheduler, 3, f"{_SEEDS}, alg. 3", ("seeds 3", "seeds3"), calls="3", stochastic=True),
    SamplerInfo("res 2s", RESSinglestepScheduler, 2, _RES, ("res single 2", "res 2s ode"), calls="2"),
    SamplerInfo(
        "res 3s",
        RESSinglestepScheduler,
        3,
        _RES,
        ("res single 3", "res 3s ode"),
        calls="3",
        options={"solver_order": 3},
    ),
)
