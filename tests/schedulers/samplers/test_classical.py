"""Classical and exponential Runge-Kutta methods, exponential Adams, BDIA: what their orders do not prove."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest

import sd_ext
from sd_ext.schedulers.multistage import with_nodes
from sd_ext.schedulers.samplers.bdia import bdia
from sd_ext.schedulers.samplers.dpm_solver import multistep
from sd_ext.schedulers.samplers.etd_rk import exponential_rk
from sd_ext.schedulers.samplers.exponential_adams import abnorsett
from sd_ext.schedulers.samplers.exponential_rk import res_singlestep
from sd_ext.schedulers.samplers.res_multistep import res_multistep
from sd_ext.schedulers.samplers.runge_kutta import SHORTER, TABLEAUS, explicit, tableau

from ..conftest import SD
from ..mixture import run_table
from ..over import over


def eps(mixture, level, x):
    """The noise prediction at one level."""
    return mixture.eps(x, level.alpha[0], level.sigma[0])


@over("method", [name for name in TABLEAUS if name not in ("euler", "merson")])
def test_a_step_is_the_textbooks_in_sigma_over_alpha(method, schedule, mixture):
    """y = x / alpha, k = eps, h = the step in sigma / alpha."""
    of = TABLEAUS[method]
    scheduler = sd_ext.make_scheduler(method, SD)
    steps = schedule.at_lambda([-1.0, -0.6])
    levels = with_nodes(steps, [len(of.b)], scheduler._nodes)
    x = mixture.sample(5, steps.alpha[0], steps.sigma[0], seed=3)
    y, rho, h = x / steps.alpha[0], steps.ratio[0], steps.ratio[1] - steps.ratio[0]
    slopes = [eps(mixture, steps[:1], x)]
    for c, weights in zip(of.c, of.a, strict=True):
        level = schedule.at_lambda([-np.log(rho + c * h)])
        inner = y + h * sum(w * k for w, k in zip(weights, slopes, strict=True))
        slopes.append(eps(mixture, level, level.alpha[0] * inner))
    end = steps.alpha[1] * (y + h * sum(w * k for w, k in zip(of.b, slopes, strict=True)))
    np.testing.assert_allclose(run_table(explicit(levels, method), mixture, x), end, atol=1e-9)


@over("method", TABLEAUS)
def test_tableaus_meet_the_conditions_of_their_order(method):
    """Butcher's trees of up to three nodes, and the quadrature conditions of any order."""
    of = TABLEAUS[method]
    b, c = np.array(of.b), np.array([0.0, *of.c])
    a = np.zeros((len(b), len(b)))
    for j, row in enumerate(of.a, 1):
        a[j, : len(row)] = row
    for power in range(of.order):
        assert b @ c**power == pytest.approx(1 / (power + 1), abs=1e-12), power
    if of.order >= 3:
        assert b @ a @ c == pytest.approx(1 / 6, abs=1e-12)
    if of.order >= 4:
        assert (b * c) @ a @ c == pytest.approx(1 / 8, abs=1e-12) and b @ a @ a @ c == pytest.approx(1 / 24, abs=1e-12)


def test_a_shorter_step_is_a_method_of_as_many_calls():
    for size, name in SHORTER.items():
        assert len(TABLEAUS[name].b) == size == len(tableau("dormand-prince 5", size).b)
    assert tableau("rk 3/8", 4) is TABLEAUS["rk 3/8"]


def test_exponential_adams_of_low_orders_are_known_samplers(schedule):
    levels = schedule.at_lambda(np.linspace(-2.0, 1.5, 21) ** 3 / 4 - 0.5)
    for order, other in (
        (2, res_multistep(levels)),
        (3, multistep(levels, 3, solver_type="heun", exact=True, lower_order_final=False)),
    ):
        rows = abnorsett(levels, order, lower_order_final=False).rows
        np.testing.assert_allclose(rows, other.rows, atol=1e-9)


def test_exponential_methods_of_one_stage_less_agree_with_res(schedule):
    """Steps too short for their method are RES 2S, whose table has other tests."""
    levels = schedule.at_lambda([-1.0, -0.7, -0.4]).with_stages([0, 1, 0])
    np.testing.assert_allclose(exponential_rk(levels, "etdrk4").rows, res_singlestep(levels).rows, atol=1e-12)


@over("method", ["etdrk3", "etdrk4", "krogstad", "res 5s", "lawson 2", "lawson 4"])
def test_small_steps_weigh_as_the_classical_method_does(method):
    """phi functions of 0 are 1 / n!: the underlying Runge-Kutta method."""
    classical = {"etdrk3": (1 / 6, 2 / 3, 1 / 6), "lawson 2": (0, 1), "res 5s": (1 / 6, 0, 0, 1 / 6, 2 / 3)}
    expected = classical.get(method, (1 / 6, 1 / 3, 1 / 3, 1 / 6))
    scheduler = sd_ext.make_scheduler(method, SD)
    h = 1e-3
    steps = scheduler.schedule.at_lambda([0.0, h])
    table = scheduler._table(with_nodes(steps, [len(expected)], scheduler._nodes), 0.0)
    x = np.zeros(len(expected))  # what the step has of each prediction, by running it on unit predictions
    for row in range(table.calls):
        x = table.rows[row, 0, 0] * x
        for back in range(row + 1):
            x[row - back] += table.rows[row, 0, 2 + back]
    np.testing.assert_allclose(x / (steps.alpha[1] * h), expected, atol=2e-3)


@over("order", [2, 4])
def test_lawsons_order_is_not_taken_for_that_of_other_solvers(order):
    """Nor theirs for its: configs go from one to the other, and come back as they were."""
    ours = sd_ext.LawsonScheduler(**SD, lawson_order=order)
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(ours.config)
    assert theirs.config["solver_order"] == 2
    config = sd_ext.LawsonScheduler.from_config({**theirs.config, "solver_order": 3}).config
    assert config["lawson_order"] == order
    of_another = diffusers.UniPCMultistepScheduler(**SD, solver_order=3).config
    assert sd_ext.LawsonScheduler.from_config(of_another).config["lawson_order"] == 4


@over("gamma", [1.0, 0.5])
def test_bdia_runs_backwards_to_the_bit_of_float64(gamma, schedule, mixture):
    """From the last two latents of a run, with the network asked at the same places, to its beginning."""
    levels = schedule.at_lambda(np.linspace(-1.5, 1.0, 13))
    rows = bdia(levels, gamma).rows
    x = [mixture.sample(4, levels.alpha[0], levels.sigma[0], seed=5)]
    for i, row in enumerate(rows):
        before = x[-2] if i else 0.0
        x.append(row[0, 0] * x[-1] + row[0, 1] * before + row[0, 2] * eps(mixture, levels[i : i + 1], x[-1]))
    np.testing.assert_allclose(x[-1], run_table(bdia(levels, gamma), mixture, x[0]), atol=1e-12)
    later, now = x[-1], x[-2]
    for i in range(len(rows) - 1, 0, -1):
        row = rows[i, 0]
        earlier = (later - row[0] * now - row[2] * eps(mixture, levels[i : i + 1], now)) / row[1]
        later, now = now, earlier
    np.testing.assert_allclose(now, x[0], atol=1e-6)
