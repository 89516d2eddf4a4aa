"""Convergence orders, by the slope of log error against an exact solution, and exactness where theory promises it."""

from __future__ import annotations

import numpy as np
import pytest

import sd_ext
from sd_ext.schedulers.dpm_solver import multistep, singlestep, singlestep_stages
from sd_ext.schedulers.first_order import first_order
from sd_ext.schedulers.multistage import heun, heun_levels
from sd_ext.schedulers.pndm import plms

from .mixture import Mixture, run_table


def graded(schedule, n):
    """n steps in lambda from -2.5 to 1.5, small at the start, so that a low-order warm-up does not set the order."""
    return schedule.at_lambda(-2.5 + 4.0 * np.linspace(0, 1, n + 1) ** 1.7)


def even_t(schedule, n):
    """n even steps in t, what Adams-Bashforth in t is made for."""
    return schedule.at(np.linspace(900, 100, n + 1))


def _multistep(order, algorithm, solver_type="midpoint", exact=False):
    return lambda levels: multistep(levels, order, algorithm, solver_type, exact=exact, lower_order_final=False)


def _singlestep(algorithm, solver_type):
    def table(levels):
        return singlestep(levels.with_stages(singlestep_stages(len(levels) - 1, 1.0)), algorithm, solver_type)

    return table


CASES = {
    "ddim / euler": (1, first_order, graded),
    "ddim, eps basis": (1, lambda levels: first_order(levels, basis="eps"), graded),
    "heun": (2, lambda levels: heun(heun_levels(levels)), graded),
    "plms": (2, plms, even_t),
    **{
        f"{algorithm} 2m {solver}": (2, _multistep(2, algorithm, solver), graded)
        for algorithm in ("dpmsolver", "dpmsolver++")
        for solver in ("midpoint", "heun")
    },
    "dpmsolver++ 1": (1, _multistep(1, "dpmsolver++"), graded),
    "dpmsolver 3m as published": (2, _multistep(3, "dpmsolver"), graded),
    "dpmsolver++ 3m as published": (2, _multistep(3, "dpmsolver++"), graded),
    "dpmsolver 3m exact": (3, _multistep(3, "dpmsolver", exact=True), graded),
    "dpmsolver++ 3m exact": (3, _multistep(3, "dpmsolver++", exact=True), graded),
    **{
        f"{algorithm} 2s {solver}": (2, _singlestep(algorithm, solver), graded)
        for algorithm in ("dpmsolver", "dpmsolver++")
        for solver in ("midpoint", "heun")
    },
}
COUNTS = (64, 128, 256)


def slope(schedule, mixture, table, place) -> float:
    start = place(schedule, 8)
    x = mixture.sample(24, start.alpha[0], start.sigma[0], seed=1)
    exact = mixture.solve(x, start)
    errors = [np.sqrt(np.mean((run_table(table(place(schedule, n)), mixture, x) - exact) ** 2)) for n in COUNTS]
    return -float(np.polyfit(np.log(COUNTS), np.log(errors), 1)[0])


@pytest.mark.parametrize("name", CASES)
def test_order(name, schedule, mixture):
    order, table, place = CASES[name]
    assert slope(schedule, mixture, table, place) == pytest.approx(order, abs=0.25)


def test_stated_orders_are_the_proven_ones():
    proven = {
        "ddim": "ddim / euler", "euler": "ddim / euler", "plms": "plms", "heun": "heun",
        "dpm-solver 1": "ddim, eps basis", "dpm-solver 2m": "dpmsolver 2m midpoint",
        "dpm-solver 3m": "dpmsolver 3m as published",
        "dpm-solver 3m exact": "dpmsolver 3m exact", "dpm++ 1": "dpmsolver++ 1", "dpm++ 2m": "dpmsolver++ 2m midpoint",
        "dpm++ 3m": "dpmsolver++ 3m as published", "dpm++ 3m exact": "dpmsolver++ 3m exact",
        "dpm++ 2s": "dpmsolver++ 2s midpoint",
    }  # fmt: skip
    deterministic = {info.name: info.order for info in sd_ext.list_samplers() if not info.stochastic}
    assert deterministic == {name: CASES[case][0] for name, case in proven.items()}


@pytest.mark.parametrize("basis", ["x0", "eps"])
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
    from sd_ext.schedulers.table import Table

    levels = graded(schedule, 1024)
    x = mixture.sample(24, levels.alpha[0], levels.sigma[0], seed=1)
    exact = mixture.solve(x, levels)
    table = multistep(levels, 3, exact=True, lower_order_final=False)
    rounded = Table(levels, table.rows.astype(np.float32).astype(float), "x0", "nothing")
    error, error32 = (np.sqrt(np.mean((run_table(t, mixture, x) - exact) ** 2)) for t in (table, rounded))
    assert error32 > 10 * error
