"""UniPC: every prediction is used twice, to correct the step that led to it and to predict the next.

Source: Zhao et al. 2023, arXiv 2302.04867 (UniP and UniC, algorithms 1 and 2; B(h) versions, eq. 3 and 8).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import ClassVar

from ...errors import InputError
from ..base import TableScheduler
from ..corrector import Half, predictor_corrector
from ..info import SamplerInfo
from ..kernel import Kernel
from ..schedule import Levels
from ..table import Basis, Table, build

__all__ = ["UniPCMultistepScheduler"]


def unipc(
    levels: Levels,
    order: int = 2,
    solver_type: Half = "bh2",
    basis: Basis = "x0",
    *,
    lower_order_final: bool = True,
    disable_corrector: Collection[int] = (),
) -> Table:
    """UniPC of order 1 to 4, on x0 or eps.

    Convergence is of order `order` + 1: the corrector's polynomial goes through one prediction more than the
    predictor's. 1 call a step. Other names: UniPCMultistepScheduler; uni_pc is order 3 with "bh1", uni_pc_bh2 order 3
    with "bh2" (ComfyUI), and AUTOMATIC1111's UniPC is by default order 3 with "bh1".

    The paper's B(h) is a factor of the system it solves for the coefficients and drops out of the solution: what is
    left is the exponential Adams-Bashforth-Moulton method. Only where the authors write 1/2 for a solution, in
    predictors of order 2 and correctors of order 1, do "bh1" and "bh2" differ. Hence order 3 and 4 meet them in the
    first and last steps alone.

    Args:
        levels: n + 1 levels, the end included.
        lower_order_final: lower the order towards the end, to 1 in the last step.
        disable_corrector: steps, counted from 0, that are not corrected.
    """
    levels = levels if basis == "x0" else levels.with_signal()
    n = len(levels) - 1

    def orders(i: int) -> tuple[int, int]:
        now = min(order, i + 1, n - i if lower_order_final else order)
        return now, 0 if i in disable_corrector else now + 1

    rows = predictor_corrector(levels, lambda i: Kernel.of(levels, i, i + 1, basis), orders, solver_type)
    return build(levels, rows, basis)


class UniPCMultistepScheduler(TableScheduler):
    """UniPC, orders 1 to 4; see `unipc`.

    Order 2 to 5, one above `solver_order`; 1 call a step. Source: arXiv 2302.04867, alg. 1-2.

    Args:
        solver_order: 1 to 4, of the predictor; convergence is one order higher.
        predict_x0: on x0; False on eps.
        solver_type: "bh1" or "bh2"; what other families call theirs stands for "bh2", as in Diffusers.
        lower_order_final: lower the order towards the end, to 1 in the last step.
        disable_corrector: steps, counted from where the run starts, that are not corrected.
        solver_p: must be None: another scheduler as the predictor is not a table.
    """

    solver_order: int = 2
    predict_x0: bool = True
    solver_type: str = "bh2"
    lower_order_final: bool = True
    disable_corrector: Sequence[int] = []
    solver_p: None = None

    _closed_grid: ClassVar[bool] = False
    _flow_flag: ClassVar[bool | None] = True
    _karras_on_ratio: ClassVar[bool] = True

    def _setup(self) -> None:
        super()._setup()
        self._choice("solver_order", (1, 2, 3, 4))
        self._choice_or_default("solver_type", ("bh1", "bh2"), ("midpoint", "heun", "logrho"))
        self._choice("solver_p", (None,))
        steps = self.config["disable_corrector"]
        if not isinstance(steps, (list, tuple)) or not all(isinstance(i, int) and i >= 0 for i in steps):
            raise InputError(f"UniPCMultistepScheduler: disable_corrector must be a list of steps, got {steps!r}")

    def _table(self, levels: Levels, eta: float) -> Table:
        config = self.config
        return unipc(
            levels,
            config["solver_order"],
            config["solver_type"],
            "x0" if config["predict_x0"] else "eps",
            lower_order_final=config["lower_order_final"],
            disable_corrector=config["disable_corrector"],
        )


def _info(
    name: str, order: int, half: Half, aliases: tuple[str, ...] = (), note: str = "", predict_x0: bool = True
) -> SamplerInfo:
    return SamplerInfo(
        name,
        UniPCMultistepScheduler,
        order + 1,
        "arXiv 2302.04867, alg. 1-2",
        aliases,
        options={"solver_order": order, "solver_type": half, "predict_x0": predict_x0},
        note=note,
    )


SAMPLERS = (
    _info("unipc", 2, "bh2", ("unipc 2", "unipc bh2"), "Diffusers' default"),
    _info("unipc bh1", 2, "bh1", ("unipc 2 bh1",)),
    _info("unipc 3", 3, "bh2", ("unipc 3 bh2", "uni_pc_bh2")),
    _info("unipc 3 bh1", 3, "bh1", ("uni_pc", "uni_pc_bh1"), "AUTOMATIC1111's and ComfyUI's default"),
    _info("unipc 4", 4, "bh2", ("unipc 4 bh2",)),
    _info("unipc eps", 2, "bh2", ("unipc 2 eps",), "for few calls with little guidance", predict_x0=False),
    _info("unipc 3 eps", 3, "bh2", (), "for few calls with little guidance", predict_x0=False),
)
