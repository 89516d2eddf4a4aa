"""Adams-Bashforth in t on epsilon: the pseudo linear multistep method."""

from __future__ import annotations

from .first_order import transfer
from .schedule import Levels
from .table import Row, Table, build

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
