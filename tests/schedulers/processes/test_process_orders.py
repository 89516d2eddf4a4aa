"""Orders of convergence on every process: a sampler's is its own, whatever the model was trained on."""

from __future__ import annotations

import numpy as np
import pytest

import sd_ext

from ..mixture import run_table
from ..over import over
from ..test_orders import COUNTS, DETERMINISTIC, GRIDS, ORDERS, graded
from .known import KNOWN


def table_of(scheduler, place, n):
    if isinstance(scheduler, sd_ext.DPMSolverSinglestepScheduler):  # without a shorter last step
        size = scheduler.config["solver_order"]
        return scheduler._table(place(scheduler.schedule, n * size).with_stages([*range(size)] * n), 0.0)
    return scheduler._table(scheduler._explicit_stages(place(scheduler.schedule, n)), 0.0)


@over("process", ["flow", "EDM", "SVD"], full=KNOWN)
@over("name", ["dpm++ 2m", "flow heun"], full=[name for name in ORDERS if name not in GRIDS])
def test_order_on_each_process(process, name, mixture):
    """On a grid in lambda; Adams' methods in the timestep have their order on the timesteps that they are for."""
    if "t-ab" in name and process == "Stable Audio":
        return  # lambda is not smooth in its timesteps
    options = sd_ext.make_scheduler(name).config
    given = {key: value for key, value in DETERMINISTIC.items() if key in options}
    scheduler = sd_ext.make_scheduler(name, KNOWN[process].config, **given)
    start = graded(scheduler.schedule, 8)
    x = mixture.sample(24, start.alpha[0], start.sigma[0], seed=1)
    exact = mixture.solve(x, start)
    tables = [table_of(scheduler, graded, n) for n in COUNTS]
    errors = [np.sqrt(np.mean((run_table(table, mixture, x) - exact) ** 2)) for table in tables]
    assert -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0] == pytest.approx(ORDERS[name], abs=0.3)
