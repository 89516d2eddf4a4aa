"""The teacher: a good sampler with many calls, whose ends a student shall reach with few."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..schedulers import Table, make_scheduler
from ..schedulers.schedule import Array, Levels
from .measure import of_each
from .problem import OnCalls, Problem, Sets
from .student import Course
from .tables import end as end_of
from .tables import follow

SAMPLER, CALLS = "dpm++ 2m lambda_uniform", 72
"""The best sampler for many calls, as measured with the embedded model and with mixtures."""


@dataclass(frozen=True)
class Teacher:
    """What the teacher did.

    Args:
        levels: of its calls, and the end.
        states: its latents before each call, of the pairs for fitting and validation, `(calls, pairs, ...)`.
        cost: `(calls, calls + 1)`: mean square error of one first-order step from the state before call i to that
            before call j, or to the end; infinite for j <= i.
        end: where it arrived, of every pair, `(pairs, ...)`.
    """

    levels: Levels
    states: Tensor
    cost: Array
    end: Tensor

    def target(self, pairs: range, lam: float) -> Tensor:
        """Where pairs are at a level, by cubics through its nodes; at infinity the end, of those that judge too."""
        if np.isinf(lam):
            return self.end[pairs.start : pairs.stop]
        nodes = self.levels.lam[:-1]
        usable = np.flatnonzero(np.isfinite(nodes))
        first = int(np.clip(np.searchsorted(nodes, lam) - 2, usable[0], max(usable[0], len(nodes) - 4)))
        near = range(first, min(first + 4, len(nodes)))
        total = torch.zeros_like(self.states[0, pairs.start : pairs.stop])
        for i in near:
            weight = np.prod([(lam - nodes[j]) / (nodes[i] - nodes[j]) for j in near if j != i])
            total.add_(self.states[i, pairs.start : pairs.stop], alpha=float(weight))
        return total


def table_of(config: Mapping[str, Any], sampler: str = SAMPLER, calls: int = CALLS) -> Table:
    """The teacher's table for a model with this scheduler config.

    Raises:
        InputError: a sampler that adds noise, which leads every run elsewhere.
    """
    scheduler = make_scheduler(sampler, config)
    scheduler.set_timesteps(calls)
    table = scheduler.table()
    if table.stochastic:
        raise InputError(f"the teacher {sampler!r} adds noise, so its pictures cannot be reached; choose another")
    return table


def teach(
    problem: Problem, sets: Sets, guidance: float, table: Table, on_calls: OnCalls = lambda calls: None
) -> Teacher:
    """Run the teacher on all pairs.

    Args:
        problem, sets: what on.
        guidance: the guidance scale.
        table: the teacher.
        on_calls: told of predictions.

    Raises:
        InputError: its ends are not finite.
    """
    course = Course(problem, sets.with_states, guidance, on_calls)
    others = Course(problem, sets.for_judgement, guidance, on_calls)
    with problem.exactly():
        ways = [[*follow(course, pairs, table)] for pairs in problem.batches(sets.with_states)]
        end = end_of(others, table)
    xs = [torch.cat([x for x, _ in each]) for each in zip(*ways, strict=True)]
    predictions = [torch.cat([p for _, p in each]) for each in zip(*ways, strict=True)][:-1]
    end = torch.cat([xs.pop(), end])
    if bad := [number for number in sets.every if not bool(end[number].isfinite().all())]:
        raise InputError(
            f"the teacher's pictures are not numbers for {len(bad)} of {sets.pairs} pairs at guidance {guidance:g}; "
            "choose another dtype (float16 overflows in some models) or less guidance"
        )
    states = torch.stack(xs)
    some = slice(0, sets.fit)
    cost = _costs(table.levels, states[:, some], [each[some] for each in predictions], end[some])
    return Teacher(table.levels, states, cost, end)


def _costs(levels: Levels, states: Tensor, predictions: list[Tensor], end: Tensor) -> Array:
    """See `Teacher.cost`. Costs are in y = x / alpha, where all levels weigh alike (GITS, arXiv 2405.11326)."""
    n = len(states)
    few = slice(None, None, max(1, states[0, 0].numel() // 4096))
    at = [state.flatten(1)[:, few].cpu().double() for state in (*states, end)]
    predicted = [p.flatten(1)[:, few].cpu().double() for p in predictions]
    alpha, sigma = levels.alpha, levels.sigma
    cost = np.full((n, n + 1), np.inf)
    for i in range(n):
        for j in range(i + 1, n + 1):
            a = sigma[j] / sigma[i]
            reached = a * at[i] + (alpha[j] - a * alpha[i]) * predicted[i]
            cost[i, j] = float(of_each(reached, at[j]).mean()) / max(alpha[j] ** 2, 1e-4)
    return cost
