"""The rest of a fitted table from the middle, and its form with fresh noise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import sd_ext
from sd_ext.errors import TableError
from sd_ext.schedulers.calibrated.variants import takes_noise, with_noise
from sd_ext.schedulers.rest import from_call
from sd_ext.schedulers.run import P0
from sd_ext.schedulers.samplers.first_order import first_order
from sd_ext.schedulers.schedule import ZERO
from sd_ext.schedulers.table import Table

from ..conftest import SD
from ..gaussian import end_of_run, error
from ..mixture import Mixture
from ..over import over
from .family import FLOW, SCHEDULE, table_at

GUIDED, NONE = Mixture.random(4, 3, seed=1), Mixture.random(6, 3, seed=2)


def by_hand(table: Table, begin: int, x: np.ndarray) -> np.ndarray:
    """A run of the whole table's rows from a call on; what it lacks is the first prediction made."""
    history, made = table.history, []
    for i in range(begin, table.calls):
        alpha, sigma = table.levels.alpha[i], table.levels.sigma[i]
        made.insert(0, [getattr(of, table.basis)(x, alpha, sigma) for of in (GUIDED, NONE)])
        weights = table.rows[i, 0]
        new = weights[0] * x
        for field in range(table.fields):
            for j in range(history):
                new = new + weights[P0 + field * history + j] * made[min(j, len(made) - 1)][field]
        x = new
    return x


@over("basis", ["x0", "eps"])
@over("fields", [1, 2])
@over("begin", [0, 1, 3, 4])
def test_a_run_from_the_middle_takes_its_first_prediction_for_those_before(begin, fields, basis):
    table = table_at(4.0, fields=fields, basis=basis)
    rest = from_call(table, begin)
    assert rest.calls == 5 - begin and rest.fields == fields
    x = np.random.default_rng(begin).normal(size=(7, 3))
    np.testing.assert_allclose(by_hand(rest, 0, x), by_hand(table, begin, x), rtol=0, atol=1e-12)
    mean, std = end_of_run(rest, 0.7, 0.0)
    assert abs(mean - 0.7) < 1e-12 and std < 1e-12


@over("schedule", [SCHEDULE, FLOW])
@over("basis, history", [("x0", 3), ("eps", 1)])
@over("fields", [1, 2])
@over("eta", [0.3, 1.0])
def test_noise_keeps_every_marginal_of_a_single_point(eta, fields, basis, history, schedule):
    """The table checks itself at birth, call by call; here every end of a shorter run, from every start."""
    table = table_at(4.0, fields=fields, basis=basis, history=history, schedule=schedule)
    assert takes_noise(table)
    made = with_noise(table, eta)
    assert made.preserves == "marginal" and made.stochastic
    for begin in range(5):
        for calls in range(1, 6 - begin):
            rows = from_call(made, begin)
            part = replace(rows, levels=rows.levels[: calls + 1], rows=rows.rows[:calls])
            mean, std = end_of_run(part, 0.7, 0.0)
            assert abs(mean - 0.7 * part.levels.alpha[-1]) < 1e-12
            assert abs(std - part.levels.sigma[-1]) < 1e-12


def test_no_eta_is_the_table_itself():
    table = table_at(4.0)
    assert with_noise(table, 0.0) is table


@over("basis", ["x0", "eps"])
def test_on_first_order_steps_it_is_the_ancestral_sampler(basis):
    levels = SCHEDULE.at(np.linspace(999, 20, 6)).then(ZERO)
    for eta in (0.4, 1.0):
        made, known = with_noise(first_order(levels, basis=basis), eta), first_order(levels, eta=eta, basis=basis)
        np.testing.assert_allclose(made.rows, known.rows, atol=1e-14)


@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_a_second_order_table_stays_of_second_order(eta):
    """On a Gaussian, exactly: a quarter of the step leaves a sixteenth of the error, not a quarter."""
    errors = []
    for calls in (40, 160):
        levels = SCHEDULE.at_lambda(np.linspace(-2.0, 2.0, calls + 1))
        table = sd_ext.make_scheduler("dpm++ 2m", SD, lower_order_final=False)._table(levels, 0.0)
        errors.append(error(with_noise(table, eta)))
    assert errors[0] / errors[1] > 10


def test_what_takes_no_noise():
    assert takes_noise(table_at(4.0)) and not takes_noise(table_at(4.0, preserves="mean"))
    for fields in (1, 2):  # on eps, what is remembered is of other noise
        table = table_at(4.0, basis="eps", fields=fields)
        assert not takes_noise(table)
        with pytest.raises(TableError, match="leaves noise"):
            with_noise(table, 1.0)
    for name in ("euler a", "dpm++ 2s", "heun"):
        scheduler = sd_ext.make_scheduler(name, SD)
        scheduler.set_timesteps(6)
        assert not takes_noise(scheduler.table()), name
