from __future__ import annotations

import json

import numpy as np
import pytest

import sd_ext
from sd_ext.errors import InputError, TableError
from sd_ext.schedulers.samplers.first_order import first_order
from sd_ext.schedulers.table import Row, Table, build

from .over import over


def changed(table: Table, call: int, out: int, slot: int, by: float) -> Table:
    rows = table.rows.copy()
    rows[call, out, slot] += by
    return Table(table.levels, rows, table.basis, table.preserves)


@pytest.fixture(scope="module")
def table(schedule) -> Table:
    return first_order(schedule.at(np.linspace(999, 0, 6)), eta=0.5)


@over("slot, says", [(0, "constant picture"), (2, "constant picture"), (-1, "leaves noise")])
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


@over("text", ["[", "{}", "[1]", json.dumps({"format": "sd_ext.table/1", "t": "x"})])
def test_other_json_is_refused(text):
    with pytest.raises(InputError, match="not a sampler table"):
        Table.from_json(text)


def test_prints_one_line_a_call(table):
    lines = str(table).splitlines()
    assert len(lines) == 2 + table.calls + 1
    assert f"{table.rows[2, 0, 0]:+.5f}" in lines[4]
    assert "noise" in lines[1] and "stash" not in lines[1]
