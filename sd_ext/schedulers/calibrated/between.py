"""Between two tables that were fitted at two strengths of guidance.

The best weights move with the strength in so straight a line that a table between two fitted ones is as good as one
fitted there. What is interpolated is levels in lambda, told timesteps, and each row's distance from the first-order
step between its own levels: on data that is a single point this distance weighs nothing, so that whatever is added to
a first-order step between new levels leaves it exact.
"""

from __future__ import annotations

import numpy as np

from ..run import P0, X
from ..schedule import Array, Levels
from ..table import Table
from ..transfer import transfer


def same_kind(one: Table, other: Table) -> bool:
    """Whether what two tables say can be interpolated: same basis, fields, calls and ends."""
    alike = [(t.basis, t.fields, t.second, t.calls, t.preserves) for t in (one, other)]
    return alike[0] == alike[1] and _meet(one.levels, other.levels)


def _meet(one: Levels, other: Levels) -> bool:
    """Whether there are levels between those of two lists: they are equal, or of one process and with like ends."""
    if _equal(one, other):
        return True
    finite = [np.isfinite(each.lam).tolist() for each in (one, other)]
    return finite[0] == finite[1] and power(one) == power(other) != 0


def _equal(one: Levels, other: Levels) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("t", "alpha", "sigma"))


def power(levels: Levels) -> int:
    """p where alpha^p + sigma^p = 1: 1 for flow matching, 2 for processes that preserve the variance; 0 for others."""
    return next((p for p in (1, 2) if np.allclose(levels.alpha**p + levels.sigma**p, 1, atol=1e-9)), 0)


def between(one: Table, other: Table, part: float) -> Table:
    """The table at a part of the way from one to another of the same kind.

    Args:
        one, other: see `same_kind`.
        part: 0 to 1.
    """
    history = max(one.history, other.history)
    mixed = (1 - part) * excess(one, history) + part * excess(other, history)
    return on_first_order(_levels(one.levels, other.levels, part), mixed, one)


def excess(table: Table, history: int | None = None) -> Array:
    """How far the rows of x' are from first-order steps, `(calls, 3 + fields history)`.

    Args:
        table: without stash and noise.
        history: of the result, at least the table's own, which it is by default.
    """
    history = history or table.history
    rows = np.zeros((table.calls, 3 + table.fields * history))
    rows[:, :P0], rows[:, -1] = table.rows[:, 0, :P0], table.rows[:, 0, -1]
    for number in range(table.fields):
        own = table.rows[:, 0, P0 + number * table.history :][:, : table.history]
        rows[:, P0 + number * history :][:, : table.history] = own
    for i, row in enumerate(rows):
        a, b = transfer(table.levels, i, table.basis)
        row[[X, P0]] -= a, b
    return rows


def on_first_order(levels: Levels, distance: Array, like: Table, std: Array | None = None) -> Table:
    """First-order steps between levels, with so much added.

    Args:
        levels: of the calls, and the end.
        distance: what `excess` gives, `(calls, 3 + fields history)`. What its rounding, or other levels, would change
            of data that is a single point is taken from this call's prediction.
        like: a table of the same basis, fields and preserved moments.
        std: noise added afresh at each call, for which the step leaves room; by default none.
    """
    rows = np.zeros((len(distance), 2, distance.shape[1]))
    for i, added in enumerate(distance):
        fresh = 0.0 if std is None else float(std[i])
        a, b = transfer(levels, i, like.basis, fresh)
        row = added.copy()
        if like.basis == "x0":
            row[P0] -= row[X] * levels.alpha[i] + row[P0:-1].sum()
        elif like.preserves == "marginal":
            row[P0] -= row[P0:-1].sum()
        row[[X, P0]] += a, b
        row[-1] = fresh
        rows[i, 0] = row
    return Table(levels, rows, like.basis, like.preserves, like.fields, like.second)


def _levels(one: Levels, other: Levels, part: float) -> Levels:
    """Between two lists of levels: lambda where it is finite, and the told timesteps."""
    if _equal(one, other):
        return one
    finite, p = np.isfinite(one.lam), power(one)
    lam = (1 - part) * one.lam[finite] + part * other.lam[finite]
    alpha, sigma = one.alpha.copy(), one.sigma.copy()
    alpha[finite] = (1 + np.exp(-p * lam)) ** (-1 / p)
    sigma[finite] = (1 + np.exp(p * lam)) ** (-1 / p)
    return Levels((1 - part) * one.t + part * other.t, alpha, sigma)
