from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sd_ext
from sd_ext.errors import InputError, TableError
from sd_ext.schedulers.run import Run
from sd_ext.schedulers.samplers.first_order import first_order
from sd_ext.schedulers.table import Row, Table, build

from .conftest import SD
from .mixture import Mixture, run_table

NAMES = [info.name for info in sd_ext.list_samplers()]


def changed(table: Table, call: int, out: int, slot: int, by: float) -> Table:
    rows = table.rows.copy()
    rows[call, out, slot] += by
    return Table(table.levels, rows, table.basis, table.preserves)


@pytest.fixture(scope="module")
def table(schedule) -> Table:
    return first_order(schedule.at(np.linspace(999, 0, 6)), eta=0.5)


@pytest.mark.parametrize("slot, says", [(0, "constant picture"), (2, "constant picture"), (-1, "leaves noise")])
def test_a_wrong_weight_is_refused_at_birth(table, slot, says):
    with pytest.raises(TableError, match=f"call 3 .*{says}|call 3 {says}"):
        changed(table, 3, 0, slot, 1e-4)


def test_every_nonzero_weight_of_a_multistep_table_is_guarded():
    scheduler = sd_ext.make_scheduler("dpm++ 3m")
    scheduler.set_timesteps(8)
    table = scheduler.table()
    for call, slot in np.argwhere(table.rows[:, 0] != 0):
        with pytest.raises(TableError):
            changed(table, int(call), 0, int(slot), 1e-5)


def test_reading_what_was_never_written_is_refused(schedule):
    levels = schedule.at([900.0, 500.0, 100.0])
    with pytest.raises(TableError, match="before the first call"):
        build(levels, [Row(1, (0.5, 0.5)), Row(1, (1,))], "x0", "nothing")
    with pytest.raises(TableError, match="before any call has filled it"):
        build(levels, [Row(1, (0.5,)), Row(stash=1, p=(1,))], "x0", "nothing")
    with pytest.raises(TableError, match="not finite at call \\[1\\]"):
        build(levels, [Row(1, (0.5,)), Row(np.inf)], "x0", "nothing")
    with pytest.raises(TableError, match="need rows of shape"):
        Table(levels, np.zeros((3, 2, 4)))


@pytest.mark.parametrize("name", NAMES)
def test_json_round_trip_is_exact(name):
    scheduler = sd_ext.make_scheduler(name)
    scheduler.set_timesteps(9)
    table = scheduler.table()
    again = Table.from_json(table.to_json())
    np.testing.assert_array_equal(again.rows, table.rows)
    np.testing.assert_array_equal(again.levels.sigma, table.levels.sigma)
    assert (again.basis, again.preserves) == (table.basis, table.preserves)


@pytest.mark.parametrize("text", ["[", "{}", "[1]", json.dumps({"format": "sd_ext.table/1", "t": "x"})])
def test_other_json_is_refused(text):
    with pytest.raises(InputError, match="not a sampler table"):
        Table.from_json(text)


def test_prints_one_line_a_call(table):
    lines = str(table).splitlines()
    assert len(lines) == 2 + table.calls + 1
    assert f"{table.rows[2, 0, 0]:+.5f}" in lines[4]
    assert "noise" in lines[1] and "stash" not in lines[1]


@pytest.mark.parametrize("name", NAMES)
def test_the_executor_does_what_the_matrix_says(name, mixture):
    """Run, which folds, scales and skips, against slots' = rows[i] @ slots in numpy."""
    scheduler = sd_ext.make_scheduler(name, SD, prediction_type="epsilon")
    scheduler.set_timesteps(11)
    table = scheduler.table()
    levels = table.levels
    x = mixture.sample(16, levels.alpha[0], levels.sigma[0], seed=3)
    rng = np.random.default_rng(5)
    expected = run_table(table, mixture, x, seed=5)
    run, state = Run(table, "epsilon"), torch.from_numpy(x)
    for i in range(table.calls):
        eps = torch.from_numpy(mixture.eps(state.numpy(), levels.alpha[i], levels.sigma[i]))
        noise = torch.from_numpy(rng.standard_normal(x.shape)) if run.calls[i].noisy else None
        state = run.advance(state, eps, noise)
    np.testing.assert_allclose(state.numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_declared_history_is_needed_and_enough(name, mixture):
    scheduler = sd_ext.make_scheduler(name)
    scheduler.set_timesteps(16)
    table = scheduler.table()
    x = mixture.sample(4, table.levels.alpha[0], table.levels.sigma[0], seed=1)
    whole = run_table(table, mixture, x, seed=2)
    np.testing.assert_array_equal(run_table(table, mixture, x, seed=2, history=table.history), whole)
    if table.history > 1:
        assert np.isnan(run_table(table, mixture, x, seed=2, history=table.history - 1)).any()


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    calls=st.integers(1, 60),
    grid=st.sampled_from(["linspace", "leading", "trailing", "karras", "beta", "ays", "lambda_uniform"]),
    prediction=st.sampled_from(["epsilon", "sample", "v_prediction"]),
    data=st.data(),
)
def test_tables_hold_their_invariants_from_any_start(name, calls, grid, prediction, data):
    """Birth checks run for every sampler, grid and begin index; a single Gaussian point is then solved exactly."""
    scheduler = sd_ext.make_scheduler(name, SD, grid=grid, prediction_type=prediction)
    scheduler.set_timesteps(calls)
    begin = data.draw(st.integers(0, calls - 1))
    table = scheduler.table(begin)
    assert table.calls == calls - begin
    np.testing.assert_array_equal(table.levels.t[:-1], np.asarray(scheduler.levels.t[begin:-1]))
    point = Mixture(np.ones(1), np.array([[0.7, -0.3]]), np.zeros(1))
    x = point.sample(3, table.levels.alpha[0], table.levels.sigma[0], seed=0)
    end = run_table(table, point, x, seed=1)
    if table.levels.sigma[-1] == 0 and table.preserves != "nothing":
        np.testing.assert_allclose(end, point.means.repeat(3, 0), atol=1e-8)
    assert np.isfinite(end).all()
