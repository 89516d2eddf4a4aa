"""Convergence orders, by the slope of log error against an exact solution, and exactness where theory promises it."""

from __future__ import annotations

import numpy as np
import pytest

import sd_ext
from sd_ext.schedulers.samplers.dpm_solver import multistep
from sd_ext.schedulers.samplers.first_order import first_order
from sd_ext.schedulers.samplers.singlestep import singlestep
from sd_ext.schedulers.table import Table

from .conftest import SD
from .mixture import Mixture, run_table
from .over import over

NO_LIMIT = sd_ext.DDPMScheduler
"""Has no deterministic limit; its moments are tested instead."""


def graded(schedule, n, power=1.7):
    """n steps in lambda from -2.5 to 1.5, small at the start, so that a low-order warm-up does not set the order."""
    return schedule.at_lambda(-2.5 + 4.0 * np.linspace(0, 1, n + 1) ** power)


def even_t(schedule, n):
    """n even steps in t, what Adams-Bashforth in t is made for."""
    return schedule.at(np.linspace(900, 100, n + 1))


DETERMINISTIC = {"eta": 0.0, "s_churn": 0.0, "restarts": 0, "tau": 0.0, "lower_order_final": False}
"""Options that every sampler which has them is given: orders are those of the deterministic limit."""


def narrow(schedule, n):
    """n steps in lambda from -1.5 to 0.5: where polynomials in sigma / alpha of order 4 show it at these counts."""
    return schedule.at_lambda(-1.5 + 2.0 * np.linspace(0, 1, n + 1) ** 2)


GRIDS = {"plms": even_t, "pndm": even_t, "ipndm": even_t, "lms": narrow, "ipndm-v": narrow}
"""Where a sampler's order is shown, if not on the graded grid."""

COUNTS = (80, 160)


def deterministic(name):
    """The scheduler of a sampler's deterministic limit."""
    options = sd_ext.make_scheduler(name).config
    return sd_ext.make_scheduler(name, SD, **{k: v for k, v in DETERMINISTIC.items() if k in options})


def table_of(scheduler, place, schedule, n) -> Table:
    """The table of a scheduler for n solver steps."""
    if isinstance(scheduler, sd_ext.DPMSolverSinglestepScheduler):  # without a shorter last step
        size = scheduler.config["solver_order"]
        return scheduler._table(place(schedule, n * size).with_stages([*range(size)] * n), 0.0)
    return scheduler._table(scheduler._explicit_stages(place(schedule, n)), 0.0)


def slope(schedule, mixture, name) -> float:
    place = GRIDS.get(name, graded)
    start = place(schedule, 8)
    x = mixture.sample(24, start.alpha[0], start.sigma[0], seed=1)
    exact = mixture.solve(x, start)
    scheduler = deterministic(name)
    tables = [table_of(scheduler, place, schedule, n) for n in COUNTS]
    assert not any(table.stochastic for table in tables)
    errors = [np.sqrt(np.mean((run_table(table, mixture, x) - exact) ** 2)) for table in tables]
    return -float(np.polyfit(np.log(COUNTS), np.log(errors), 1)[0])


ORDERS = {
    info.name: info.order for info in sd_ext.list_samplers() if info.order is not None and info.cls is not NO_LIMIT
}


@over("name", ORDERS)
def test_order(name, schedule, mixture):
    assert slope(schedule, mixture, name) == pytest.approx(ORDERS[name], abs=0.25)


def _singlestep(calls):
    return lambda at, algorithm: singlestep(
        at.with_stages([*range(calls)] * ((len(at) - 1) // calls)), algorithm, "heun"
    )


HEUN_TYPES = {
    "2m": (2, 1, lambda at, algorithm: multistep(at, 2, algorithm, "heun", lower_order_final=False)),
    "2s": (2, 2, _singlestep(2)),
    "3s": (3, 3, _singlestep(3)),
}


@over("algorithm", ["dpmsolver", "dpmsolver++"])
@over("name", HEUN_TYPES)
def test_heun_types_have_the_same_order(name, algorithm, schedule, mixture):
    """`solver_type="heun"`, which integrates the whole polynomial."""
    order, calls, make = HEUN_TYPES[name]
    levels = [graded(schedule, n * calls) for n in COUNTS]
    x = mixture.sample(24, levels[0].alpha[0], levels[0].sigma[0], seed=1)
    exact = mixture.solve(x, levels[0])
    errors = [np.sqrt(np.mean((run_table(make(at, algorithm), mixture, x) - exact) ** 2)) for at in levels]
    assert -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0] == pytest.approx(order, abs=0.25)


@over("basis", ["x0", "eps"])
def test_first_order_is_exact_on_a_point(basis, schedule):
    """With x0 known and constant the exponential integrator makes no error, however few the steps."""
    point = Mixture(np.ones(1), np.array([[0.4, -1.2, 2.0]]), np.zeros(1))
    levels = schedule.at([999.0, 400.0, 3.0])
    x = point.sample(5, levels.alpha[0], levels.sigma[0], seed=0)
    end = run_table(first_order(levels, basis=basis), point, x)
    np.testing.assert_allclose(end, point.solve(x, levels), atol=1e-7)


def test_the_single_gaussian_has_its_closed_form(schedule):
    """The reference itself: for N(mu, s^2) the ODE scales x - alpha mu by the ratio of standard deviations."""
    gaussian = Mixture(np.ones(1), np.array([[0.5, -0.5]]), np.array([0.3]))
    levels = schedule.at([900.0, 50.0])
    x = gaussian.sample(5, levels.alpha[0], levels.sigma[0], seed=0)
    std = np.sqrt((0.3 * levels.alpha) ** 2 + levels.sigma**2)
    closed = levels.alpha[1] * gaussian.means + std[1] / std[0] * (x - levels.alpha[0] * gaussian.means)
    np.testing.assert_allclose(gaussian.solve(x, levels), closed, atol=1e-9)


def test_corrected_third_order_needs_float64(schedule, mixture):
    """What float64 coefficients buy: rounded to float32, the third order's error stops falling."""
    levels = graded(schedule, 1024)
    x = mixture.sample(24, levels.alpha[0], levels.sigma[0], seed=1)
    exact = mixture.solve(x, levels)
    table = multistep(levels, 3, exact=True, lower_order_final=False)
    rounded = Table(levels, table.rows.astype(np.float32).astype(float), "x0", "nothing")
    error, error32 = (np.sqrt(np.mean((run_table(t, mixture, x) - exact) ** 2)) for t in (table, rounded))
    assert error32 > 10 * error
