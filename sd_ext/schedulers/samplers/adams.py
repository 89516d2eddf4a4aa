"""Adams-Bashforth in t on epsilon: the pseudo linear multistep method."""

from __future__ import annotations

from ..base import TableScheduler
from ..info import SamplerInfo
from ..schedule import ZERO, Levels
from ..table import Row, Table, build
from ..transfer import transfer

ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
"""Weights for an even grid by the number of predictions at hand, newest first."""


def plms(levels: Levels) -> Table:
    """Pseudo linear multistep: the Adams-Bashforth mean of the last four eps, carried over by a DDIM step.

    Order 2 (the mean is taken in t, the step is not linear in t), 1 call a step. Other names: PNDM with
    `skip_prk_steps`, PLMS. Source: Liu et al. 2022, arXiv 2202.09778, eq. 12 with its transfer, eq. 11. The first three
    calls use the lower Adams-Bashforth orders, so there is no extra call as in Diffusers' PNDMScheduler.
    """
    levels, rows = levels.with_signal(), []
    for i in range(len(levels) - 1):
        a, b = transfer(levels, i, "eps")
        rows.append(Row(a, tuple(b * w for w in ADAMS_BASHFORTH[min(i, 3)])))
    return build(levels, rows, "eps")


class PNDMScheduler(TableScheduler):
    """PLMS, that is PNDM with `skip_prk_steps` as Stable Diffusion uses it; see `plms`.

    Args:
        skip_prk_steps: must be True: the Runge-Kutta start is a different sampler.
        set_alpha_to_one: end clean; False ends at t = 0's level.
    """

    skip_prk_steps: bool = True
    set_alpha_to_one: bool = False
    timestep_spacing: str = "leading"

    def _setup(self) -> None:
        super()._setup()
        self._choice("skip_prk_steps", (True,))

    def _end(self) -> Levels:
        return ZERO if self.config["set_alpha_to_one"] else self.schedule.at([0.0])

    def _table(self, levels: Levels, eta: float) -> Table:
        return plms(levels)


SAMPLERS = (SamplerInfo("plms", PNDMScheduler, 2, "arXiv 2202.09778, eq. 12", ("pndm",), note="no extra call"),)
