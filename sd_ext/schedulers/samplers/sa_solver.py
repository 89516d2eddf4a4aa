"""SA-Solver: stochastic Adams methods, predictor and corrector, between the ODE and the reverse-time SDE.

Source: Xue et al. 2023, arXiv 2309.05019 (predictor eq. 14-15, corrector eq. 17-18, algorithm 1).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from ...errors import InputError
from ..corrector import adams, behind, correction, possible, predictor_corrector
from ..info import SamplerInfo
from ..kernel import Kernel
from ..multistage import MultiCallScheduler, multistage
from ..schedule import Array, Levels
from ..table import Row, Table, build
from .ddpm import VARIANCES

__all__ = ["SASolverScheduler"]

Algorithm = Literal["data_prediction", "noise_prediction"]


def sa_solver(
    levels: Levels,
    predictor_order: int = 2,
    corrector_order: int = 2,
    tau: float = 1.0,
    algorithm: Algorithm = "data_prediction",
    *,
    window: tuple[float, float] = (float("inf"), float("-inf")),
    times: Array | None = None,
    lower_order_final: bool = True,
    simplified: bool = False,
) -> Table:
    """SA-Solver, predict-evaluate-correct; where `levels` has stages of two calls, predict-evaluate-correct-evaluate.

    Order, at tau = 0: the corrector's, at most one more than the predictor's; without a corrector, the predictor's.
    1 call a step, PECE 2. Orders count the predictions each polynomial goes through, the corrector's the new one too.
    Other names: SASolverScheduler; sa_solver and sa_solver_pece are orders 3 and 4 (ComfyUI).

    The authors' code and Diffusers, not the paper, replace the first moment k - 1 + e^-k, over k, by k / 2 in order 2
    on data predictions, k = (1 + tau^2) h. At tau = 0 this is "bh1" of UniPC; at tau = 1 it nearly doubles the weight
    of the slope in a step of h = 1. `simplified` does the same.

    Args:
        tau: strength of the noise, 0 the ODE, 1 the reverse-time SDE; eta of other samplers is tau^2.
        algorithm: on x0 or on eps. The variance of eps's noise is right for small steps only (the paper's theorem on
            data predictions), so these tables keep the mean.
        window: training times (from, to) of the steps that get noise.
        times: training times of the levels; None where they are the timesteps.
        lower_order_final: lower the orders towards the end, to 1 in the last step.
    """
    data = algorithm == "data_prediction"
    basis, preserves = ("x0", "marginal") if data else ("eps", "mean")
    half = "bh1" if simplified and data else None

    times = levels.t if times is None else times

    def kernel(levels: Levels, i: int, j: int) -> Kernel:
        eta = tau**2 if window[0] >= times[i] >= window[1] else 0.0
        return Kernel.of(levels, i, j, "x0", eta=eta) if data else Kernel.sde_eps(levels, i, j, eta)

    def orders(done: int, left: int) -> tuple[int, int]:
        """Of the step after `done` others, when `left` are left, itself included."""
        final = left if lower_order_final else predictor_order + corrector_order
        return min(predictor_order, done + 1, final), min(corrector_order, done + 2, final + 1)

    starts: list[int] = []

    def pece(levels: Levels, i: int, size: int) -> list[Row]:
        left = int((levels.stage[i : len(levels) - 1] == 0).sum())  # type: ignore[index]
        step = kernel(levels, i, i + size)
        predictor, corrector = possible(orders(len(starts), left), step, levels.alpha[i], levels.sigma[i + size])
        starts.insert(0, i)
        past = starts[: max(predictor, corrector - 1)]
        nodes = behind(levels, i, i + size, past)
        predict = adams(step, nodes[:predictor], half)
        rows = [Row(step.a, _spread(predict, i, past), step.noise)]
        if size == 2:
            correct = adams(step, (1.0, *nodes[: corrector - 1]), half) if corrector else ()
            new, *old = correction(predict, correct).tolist()
            rows.append(Row(1.0, (new, *_spread(old, i, past))))
        return rows

    if levels.stage is not None:
        return multistage(levels, pece, basis, preserves)
    levels = levels if data else levels.with_signal()
    n = len(levels) - 1
    rows = predictor_corrector(levels, lambda i: kernel(levels, i, i + 1), lambda i: orders(i, n - i), half)
    return build(levels, rows, basis, preserves)


def _spread(weights: tuple[float, ...] | list[float], i: int, calls: list[int]) -> tuple[float, ...]:
    """Weights of the predictions of these calls, at call i's slots, where those of other calls lie between."""
    slots = [0.0] * (i - calls[len(weights) - 1] + 1)
    for weight, call in zip(weights, calls, strict=False):
        slots[i - call] = weight
    return tuple(slots)


class SASolverScheduler(MultiCallScheduler):
    """SA-Solver; see `sa_solver`. Diffusers' `tau_func` is `tau` between two timesteps, so that it can be saved.

    Order 1 to 4, that of the polynomials; 1 call a step, 2 with PECE; with fresh noise. Source: arXiv 2309.05019,
    alg. 1.

    Args:
        predictor_order, corrector_order: predictions the polynomials go through, 1 to 4, the corrector's counting the
            new one; corrector 0 does not correct.
        tau: strength of the noise, 0 the ODE, 1 the reverse-time SDE.
        tau_start, tau_end: steps from timesteps between these get noise.
        tau_func: must be None.
        algorithm_type: "data_prediction" or "noise_prediction".
        lower_order_final: lower the orders towards the end, to 1 in the last step.
        simplified_second_order: order 2 as in Diffusers and the authors' code.
        variance_type: what the network gives besides its prediction, which is left out: any of DDPM's.
        pece: evaluate again where a step was corrected to: 2 calls a step.
    """

    predictor_order: int = 2
    corrector_order: int = 2
    tau: float = 1.0
    tau_start: float = 800
    tau_end: float = 200
    tau_func: None = None
    algorithm_type: str = "data_prediction"
    lower_order_final: bool = True
    simplified_second_order: bool = False
    pece: bool = False
    variance_type: str | None = None

    _closed_grid: ClassVar[bool] = False
    _flow_flag: ClassVar[bool | None] = True

    def _setup(self) -> None:
        super()._setup()
        self._choice("predictor_order", (1, 2, 3, 4))
        self._choice("corrector_order", (0, 1, 2, 3, 4))
        self._within("tau", 0, float("inf"))
        if self.config["pece"] and not self.config["corrector_order"]:
            raise InputError("SASolverScheduler: pece=True needs a corrector_order of 1 to 4, got 0")
        self._choice("tau_func", (None,))
        self._choice("variance_type", VARIANCES)
        foreign = ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++", "deis")
        self._choice_or_default("algorithm_type", ("data_prediction", "noise_prediction"), foreign)

    def _place(self, calls: int) -> Levels:
        return super()._place(calls) if self.config["pece"] else self._grid_levels(calls)

    def _explicit_stages(self, levels: Levels) -> Levels:
        return super()._explicit_stages(levels) if self.config["pece"] else levels

    def _nodes(self, steps: Levels, i: int, size: int) -> Levels:
        return steps[i + 1 : i + 2]

    def _table(self, levels: Levels, eta: float) -> Table:
        config = self.config
        return sa_solver(
            levels,
            config["predictor_order"],
            config["corrector_order"],
            config["tau"],
            config["algorithm_type"],
            window=(config["tau_start"], config["tau_end"]),
            times=self.schedule.time(levels),
            lower_order_final=config["lower_order_final"],
            simplified=config["simplified_second_order"],
        )


def _info(name: str, predictor: int, corrector: int, aliases: tuple[str, ...], note: str, **options) -> SamplerInfo:
    return SamplerInfo(
        name,
        SASolverScheduler,
        corrector,
        "arXiv 2309.05019, alg. 1",
        aliases,
        calls="2" if options.get("pece") else "1",
        stochastic=True,
        options={"predictor_order": predictor, "corrector_order": corrector, **options},
        note=note,
    )


SAMPLERS = (
    _info("sa-solver", 2, 2, ("sa_solver", "sasolver"), "Diffusers' default"),
    _info("sa-solver 3", 3, 4, ("sa_solver 3",), "ComfyUI's default"),
    _info("sa-solver pece", 3, 4, ("sa_solver_pece",), "ComfyUI's default", pece=True),
)
