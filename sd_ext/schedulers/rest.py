"""The rest of a fitted table, for runs that begin in the middle."""

from __future__ import annotations

from dataclasses import replace

from .table import P0, Table


def from_call(table: Table, begin: int) -> Table:
    """The rest of a table, for a run that begins in the middle.

    What its rows weigh of predictions from before the start they weigh of the earliest one since: the weights add up as
    before, so that data that is a single point stays exact.

    Args:
        table: without a stash.
        begin: the call that is the first.
    """
    rows, history = table.rows[begin:].copy(), table.history
    for i, row in enumerate(rows[: history - 1, 0]):
        for first in range(P0, P0 + table.fields * history, history):
            row[first + i] += row[first + i + 1 : first + history].sum()
            row[first + i + 1 : first + history] = 0
    return replace(table, levels=table.levels[begin:], rows=rows)
