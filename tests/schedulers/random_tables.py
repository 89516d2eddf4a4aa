"""Tables that are no samplers: random weights in every slot a call may read."""

from __future__ import annotations

import numpy as np

import sd_ext
from sd_ext.schedulers import Levels
from sd_ext.schedulers.table import P0, STASH, Table


def random_rows(
    rng: np.random.Generator, calls: int, history: int, density: float = 0.7, fields: int = 1
) -> np.ndarray:
    """Rows `(calls, 2, 3 + fields history)`, a part of the weights zero, that read nothing from before the first call.

    Some tables have no stash, some leave it as it is for a while; some calls draw noise for the stash alone.
    """
    shape = (calls, 2, 3 + fields * history)
    rows = 0.6 * rng.normal(size=shape) * (rng.random(shape) < density)
    for i in range(min(calls, history - 1)):
        for first in range(P0, P0 + fields * history, history):
            rows[i, :, first + i + 1 : first + history] = 0
    rows[0, :, STASH] = 0
    kind = rng.integers(3)
    if kind == 0:
        rows[:, 1], rows[:, 0, STASH] = 0, 0
    else:
        rows[0, 1, 0] = 1.0
        keeps = rng.random(calls) < 0.4 * (kind == 1)
        keeps[0] = False
        rows[keeps, 1] = 0
        rows[keeps, 1, STASH] = 1.0
    return rows


def random_levels(rng: np.random.Generator, calls: int) -> Levels:
    """Levels of falling noise, alpha^2 + sigma^2 = 1, with timesteps calls ... 0."""
    alpha = np.sort(rng.uniform(0.1, 0.99, calls + 1))
    return Levels(np.arange(calls + 1)[::-1] * 1.0, alpha, np.sqrt(1 - alpha**2))


class RandomScheduler(sd_ext.TableScheduler):
    """Runs a random table, another one from each start.

    Args:
        basis: of the table.
        history: predictions that its calls read.
        fields: 2 for rows that weigh unconditional predictions as well.
        seed: of its weights.
    """

    basis: str = "x0"
    history: int = 3
    fields: int = 1
    seed: int = 0

    def _place(self, calls: int) -> Levels:
        return random_levels(np.random.default_rng([self.config["seed"], calls]), calls)

    def _table(self, levels: Levels, eta: float) -> Table:
        calls = len(levels) - 1
        rng = np.random.default_rng([self.config["seed"], calls])
        fields = self.config["fields"]
        rows = random_rows(rng, calls, self.config["history"], fields=fields)
        return Table(levels, rows, self.config["basis"], "nothing", fields)
