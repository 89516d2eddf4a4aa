"""The sampler that is fitted: its numbers, what one call does with them, and the table they make.

A call goes from level i to level i + 1. It is one first-order step, and weighted differences of predictions:

    x' = a x + b d0 + sum_j w_j (d_j - d0) + sum_j v_j (u_j - d_j)
    a = sigma' / sigma,  b = alpha' - a alpha

d0 d1 ... are the guided predictions of x0, newest first, u0 u1 ... those without the prompt. On data that is a single
point all predictions are equal, so the differences vanish and the step is exact, whatever the weights: this is what
keeps a fitted sampler from shrinking or burning pictures. The last call goes to the clean end, where a = 0 and b = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..schedulers import NoiseSchedule, Table
from ..schedulers.schedule import ZERO, Array, Levels
from ..schedulers.table import P0, Row, build
from .problem import OnCalls, Problem

GUIDED, UNGUIDED = 3, 3
"""How many differences of each kind a call of two fields weighs at most. One field weighs all there are."""


@dataclass(frozen=True, eq=False)
class Student:
    """A sampler's numbers.

    Args:
        schedule: of the model.
        lam: lambda of each call's level, rising, `(n,)`; the first is that of full noise and is not fitted.
        told: by how much the lambda that the network is told differs from it, `(n,)`.
        weights: of each call, those of the differences d_j - d0, then those of u_j - d_j.
        fields: 1, or 2 where predictions without the prompt are weighed.
    """

    schedule: NoiseSchedule
    lam: Array
    told: Array
    weights: tuple[Array, ...]
    fields: int = 1
    levels: Levels = field(init=False)

    def __post_init__(self) -> None:
        top = self.schedule.at([self.schedule.t_max])
        alpha, sigma = self.schedule.from_lambda(self.lam)
        alpha[0], sigma[0] = top.alpha[0], top.sigma[0]
        t = self.schedule.at_lambda(self.lam + self.told).t
        object.__setattr__(self, "levels", Levels(t, alpha, sigma).then(ZERO))

    @property
    def calls(self) -> int:
        return len(self.lam)

    def base(self, i: int) -> tuple[float, float]:
        """a and b of call i's first-order step."""
        alpha, sigma = self.levels.alpha, self.levels.sigma
        a = float(sigma[i + 1] / sigma[i])
        return a, float(alpha[i + 1] - a * alpha[i])

    def columns(self, i: int, seen: Seen) -> list[Tensor]:
        """The differences that call i weighs."""
        guided, free = width(self.fields, i)
        d, u = seen.guided, seen.free
        return [d[j] - d[0] for j in range(1, guided + 1)] + [u[j] - d[j] for j in range(free)]

    def step(self, i: int, x: Tensor, seen: Seen, weights: Sequence[float] | Array | None = None) -> Tensor:
        """What call i makes of x.

        Args:
            seen: the predictions so far, this call's included.
            weights: of the differences; None takes the student's own, none at all is the first-order step.
        """
        a, b = self.base(i)
        y = a * x + b * seen.guided[0]
        own = self.weights[i] if weights is None else weights
        for weight, column in zip(own, self.columns(i, seen) if len(own) else (), strict=True):
            y.add_(column, alpha=float(weight))
        return y

    def with_weights(self, i: int, weights: Array) -> Student:
        """This student with other weights in call i."""
        return replace(self, weights=(*self.weights[:i], weights, *self.weights[i + 1 :]))

    def table(self) -> Table:
        """The sampler as a table; refused by it if it is not exact on one-point data."""
        rows = []
        for i in range(self.calls):
            a, b = self.base(i)
            guided, free = width(self.fields, i)
            w, v = self.weights[i][:guided], self.weights[i][guided:]
            p = np.zeros(max(guided + 1, free))
            p[0], p[1 : guided + 1] = b - w.sum(), w
            p[:free] -= v
            rows.append(Row(a, tuple(p.tolist()), u=tuple(v.tolist())))
        return build(self.levels, rows, "x0", "marginal")


def width(fields: int, i: int) -> tuple[int, int]:
    """How many differences call i weighs: of guided predictions, and of those without the prompt."""
    return (i, 0) if fields == 1 else (min(i, GUIDED), min(i + 1, UNGUIDED))


def zero(schedule: NoiseSchedule, lam: Array, fields: int, told: Array | None = None) -> Student:
    """The first-order sampler on these levels: all weights 0."""
    weights = tuple(np.zeros(sum(width(fields, i))) for i in range(len(lam)))
    return Student(schedule, np.array(lam, float), np.zeros(len(lam)) if told is None else told, weights, fields)


def from_table(schedule: NoiseSchedule, table: Table) -> Student:
    """The student whose table this is.

    Args:
        table: as `Student.table` made it.
    """
    levels = table.levels[:-1]
    fields, lam = table.fields, levels.lam
    made = zero(schedule, lam, fields)
    weights = []
    for i, row in enumerate(table.rows[:, 0]):
        guided, free = width(fields, i)
        v = row[P0 + table.history :][:free] if fields == 2 else row[:0]
        p = row[P0 : P0 + table.history].copy()
        p[:free] += v
        weights.append(np.concatenate([p[1 : guided + 1], v]))
    return replace(made, told=_told(schedule, levels), weights=tuple(weights))


def _told(schedule: NoiseSchedule, levels: Levels) -> Array:
    with np.errstate(invalid="ignore"):
        told = schedule.at_told(levels.t).lam - levels.lam
    return np.where(np.isfinite(told), told, 0.0)


# ---- running it ------------------------------------------------------------------------------------------------------


class Seen(NamedTuple):
    """Predictions of x0 so far, newest first.

    Args:
        guided: with the prompt.
        free: without it; empty where only one field is used.
    """

    guided: tuple[Tensor, ...] = ()
    free: tuple[Tensor, ...] = ()

    def then(self, guided: Tensor, free: Tensor | None) -> Seen:
        return Seen((guided, *self.guided), self.free if free is None else (free, *self.free))


class State(NamedTuple):
    """Where a run stands before a call, and after its prediction.

    Args:
        x: the latents, `(pairs, ...)`.
        before, seen: predictions without and with this call's.
    """

    x: Tensor
    before: Seen
    seen: Seen


class Ran(NamedTuple):
    """A run.

    Args:
        end: what it arrived at, `(pairs, ...)`.
        states: of each call that was made.
    """

    end: Tensor
    states: list[State]


@dataclass
class Course:
    """A problem, some of its pairs, and the guidance: what students are run on.

    Args:
        problem: the problem.
        pairs: which pairs.
        guidance: the guidance scale.
        on_calls: told of predictions, for a progress bar.
        whole_calls: see `Problem.begin`.
    """

    problem: Problem
    pairs: range
    guidance: float
    on_calls: OnCalls = lambda calls: None
    whole_calls: tuple[int, ...] | None = None

    def run(
        self,
        student: Student,
        begin: int = 0,
        at: State | None = None,
        stop: int | None = None,
        goes_on: bool = False,
    ) -> Ran:
        """Run a student.

        Args:
            student: the sampler.
            begin: the call to begin with.
            at: the state before it: only its x and `before` are used. None begins at the start.
            stop: end before this call's step, with its predictions made; None runs to the end.
            goes_on: whether the run before this one stopped at the call before `begin`, so that what the network keeps
                is of this very run.

        Returns:
            `end` is x before the step where it was stopped.
        """
        if self.problem.stateful and not (goes_on and len(self.pairs) <= self.problem.batch):
            begin, at = 0, None
        ran = [self._run(student, part, begin, at, stop) for part in self.problem.batches(range(len(self.pairs)))]
        return ran[0] if len(ran) == 1 else _joined(ran)

    def _run(self, student: Student, part: range, begin: int, at: State | None, stop: int | None) -> Ran:
        problem, levels = self.problem, student.levels
        pairs, rows = self.pairs[part.start : part.stop], slice(part.start, part.stop)
        x, seen, states = problem.start(pairs) if at is None else at.x[rows], Seen(), []
        if at is not None:
            seen = Seen(*(tuple(each[rows] for each in some) for some in at.before))
        if begin == 0:
            problem.begin(self.whole_calls)
        for i in range(begin, student.calls if stop is None else stop + 1):
            p, u = problem.predict(
                pairs, x, float(levels.t[i]), float(levels.alpha[i]), float(levels.sigma[i]), self.guidance
            )
            self.on_calls(len(part))
            before, seen = seen, seen.then(p, u if student.fields == 2 else None)
            states.append(State(x, before, seen))
            if i != stop:
                x = student.step(i, x, seen)
        return Ran(x, states)


def _joined(ran: list[Ran]) -> Ran:
    """Runs of several batches as one."""

    def join(some: Sequence[Seen]) -> Seen:
        return Seen(*(tuple(map(torch.cat, zip(*field, strict=True))) for field in zip(*some, strict=True)))

    states = [
        State(torch.cat([s.x for s in each]), join([s.before for s in each]), join([s.seen for s in each]))
        for each in zip(*(each.states for each in ran), strict=True)
    ]
    return Ran(torch.cat([each.end for each in ran]), states)


def unknowns(fields: int, calls: int) -> int:
    """How many numbers are fitted: weights, levels after the first, told levels."""
    return sum(sum(width(fields, i)) for i in range(calls)) + 2 * calls - 1
