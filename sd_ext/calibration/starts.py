"""Where the calls of a student begin: several grids, one of which turns out best."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..schedulers.grids.by_ratio import karras
from ..schedulers.grids.by_timestep import trailing
from ..schedulers.schedule import Array
from .teacher import Teacher


def _ends(teacher: Teacher) -> tuple[float, float]:
    lam = teacher.levels.lam[:-1]
    return float(lam[np.isfinite(lam)].min()), float(lam.max())


def _from_noise(teacher: Teacher, lam: Array) -> Array:
    """These lambda, the first of which is full noise exactly."""
    return np.concatenate([teacher.levels.lam[:1], lam[1:]])


def _even(to: float) -> Callable[[Teacher, int], Array]:
    """Even in lambda, the last call at `to`."""

    def place(teacher: Teacher, calls: int) -> Array:
        low, high = _ends(teacher)
        return _from_noise(teacher, np.linspace(low, min(to, high), calls))

    return place


def _karras(teacher: Teacher, calls: int) -> Array:
    low, high = _ends(teacher)
    return _from_noise(teacher, -np.log(karras(float(np.exp(-high)), float(np.exp(-low)), calls)))


def _trailing(teacher: Teacher, calls: int) -> Array:
    """Even in timestep, as Diffusers' "trailing": more calls where there is much noise, which strong guidance needs."""
    nodes = teacher.levels[:-1]
    return _from_noise(teacher, np.interp(trailing(float(nodes.t[0]), calls), nodes.t[::-1], nodes.lam[::-1]))


def _by_cost(teacher: Teacher, calls: int) -> Array:
    """The nodes of least total cost of first-order steps, by dynamic programming (GITS, arXiv 2405.11326)."""
    cost = np.sqrt(teacher.cost)
    nodes = len(cost)
    best, ways = cost[:, nodes], []  # with one call left, from each node to the end
    for _ in range(calls - 1):
        total = cost[:, :nodes] + best[None, :]
        ways.append(total.argmin(1))
        best = total.min(1)
    found = [0]
    for way in reversed(ways):
        found.append(int(way[found[-1]]))
    return teacher.levels.lam[found]


GRIDS: dict[str, Callable[[Teacher, int], Array]] = {
    "even to 1.5": _even(1.5),
    "even to 2.5": _even(2.5),
    "karras": _karras,
    "trailing": _trailing,
    "by cost": _by_cost,
}
"""Name -> (teacher, calls) -> lambda of each call. "Even" is even in lambda = log(alpha / sigma), up to this value."""
AS_AUTO = "as auto"
"""One grid more, where `auto` has a table of its own for the guidance and the number of calls: its levels."""
