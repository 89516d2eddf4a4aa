"""What is made of a fitted table at run time: its form with fresh noise."""

from __future__ import annotations

import numpy as np

from ..run import P0, STASH
from ..table import Table
from ..transfer import fresh_noise, transfer
from .between import excess, on_first_order


def takes_noise(table: Table) -> bool:
    """Whether `with_noise` can be made of a table.

    It must be deterministic, of one call a step, without a stash, and keep the marginal. A table on eps must not weigh
    earlier predictions: those of x0 stay the same on data that is a single point, but those of noise do not where fresh
    noise comes in between.
    """
    single = table.levels.stage is None or not np.any(table.levels.stage)
    earlier = np.arange(table.rows.shape[2] - 1 - P0) % table.history > 0
    remembers = table.basis == "eps" and np.any(table.rows[:, 0, P0:-1][:, earlier])
    own = table.stochastic or np.any(table.rows[:, :, STASH]) or table.preserves != "marginal"
    return single and not remembers and not own


def with_noise(table: Table, eta: float) -> Table:
    """A deterministic table with noise drawn afresh at every call, and the same marginals.

    A row of it is the first-order step, x' = a x + b p, and weights that add nothing on data that is a single point.
    The first-order step is replaced by the ancestral one (arXiv 2010.02502, eq. 12): sigma' is split into `down`, which
    the step ends at, and fresh noise, with down^2 + noise^2 = sigma'^2. The variance of x' there is sigma'^2 as before.
    The deterministic part is a longer step, from sigma to `down`, and the weights that were fitted grow as that of its
    prediction b does: what they correct is how predictions vary over the step.

    Args:
        table: see `takes_noise`.
        eta: share of the posterior's standard deviation that is drawn afresh, 0 to 1; 0 is the table itself.
    """
    if not eta:
        return table
    std = np.array([fresh_noise(table.levels, i, eta) for i in range(table.calls)])
    longer = [
        transfer(table.levels, i, table.basis, std[i])[1] / transfer(table.levels, i, table.basis)[1]
        for i in range(table.calls)
    ]
    return on_first_order(table.levels, excess(table) * np.array(longer)[:, None], table, std)
