"""Solver steps of several network calls: how many calls each gets, where they fall, and their rows.

A run of n calls is a run of solver steps of at most `most` calls. The step to a clean end is one call, since nothing
can be evaluated at sigma = 0, and so is a step from zero terminal SNR or nearly so, whose length in lambda is infinite.
Calls that are left over make a shorter step at the start, where the trajectory is straightest: every count of calls is
possible, and is the count of network evaluations.

`levels.stage` says where solver steps begin (0) and where their further calls fall (1, 2, ...). A run that starts at a
further call (img2img, inpainting, a refiner) walks to the beginning of the next step by first-order steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from ..errors import TableError
from .base import TableScheduler
from .schedule import NO_SIGNAL, Levels, NoiseSchedule
from .table import Basis, Preserves, Row, Table, build
from .transfer import fresh_noise, transfer


def starts_in_noise(levels: Levels) -> bool:
    """Whether the first level is all but noise (alpha below `NO_SIGNAL`), so that its step must be a single call."""
    return bool(levels.alpha[0] < NO_SIGNAL)


def step_sizes(calls: int, most: int, *, head: tuple[int, ...] = (), tail: tuple[int, ...] = ()) -> list[int]:
    """Calls of each solver step, `calls` in all: `head`, a shorter step for what is left over, full steps, `tail`.

    Args:
        calls: network calls of the run.
        most: calls of a full step.
        head, tail: calls of the first and the last steps, where those are special. A run too short for them has steps
            of one call.
    """
    middle = calls - sum(head) - sum(tail)
    if middle < 0:
        return [1] * calls
    return [*head, *([middle % most] if middle % most else []), *[most] * (middle // most), *tail]


def between(schedule: NoiseSchedule, steps: Levels, i: int, fractions: Sequence[float]) -> Levels:
    """Levels at fractions of step i, counted in lambda, in which the methods are derived: at the same fractions of t,
    Runge-Kutta methods would lose their order.

    Args:
        steps: levels of the solver steps.
        fractions: of the way from `steps[i]` to `steps[i + 1]`.
    """
    lam = steps.lam
    return schedule.at_lambda(lam[i] + np.asarray(fractions) * (lam[i + 1] - lam[i]))


def ancestral_middle(steps: Levels, i: int, eta: float) -> float:
    """Where the second call of an ancestral step falls, as a fraction of the step in lambda: half-way down to the level
    from which the step's noise is added.
    """
    lam, left = steps.lam, np.sqrt(steps.sigma[i + 1] ** 2 - fresh_noise(steps, i, eta) ** 2)
    down = np.log(steps.alpha[i + 1]) - np.log(left)
    return 0.5 * (down - lam[i]) / (lam[i + 1] - lam[i])


Nodes = Callable[[Levels, int, int], Levels]
"""Where a solver step's further calls fall: (levels of the solver steps, i, calls of step i) -> the levels of all its
calls but the first.
"""


def with_nodes(steps: Levels, sizes: Sequence[int], nodes: Nodes) -> Levels:
    """The levels of every call: those of the solver steps (end included) and, between them, those of further calls."""
    parts, stage = [], []
    for i, size in enumerate(sizes):
        parts.append(steps[i : i + 1])
        if size > 1:
            parts.append(nodes(steps, i, size))
        stage += range(size)
    parts.append(steps[len(sizes) :])
    fields = (np.concatenate([getattr(part, name) for part in parts]) for name in ("t", "alpha", "sigma"))
    return Levels(*fields).with_stages(stage)


StepRows = Callable[[Levels, int, int], Sequence[Row]]
"""The rows of one solver step: (levels of all calls, i, size) -> a row for each of the `size` calls from call i on, the
last of which ends at level i + size.
"""


def multistage(
    levels: Levels, step: StepRows, basis: Basis, preserves: Preserves = "marginal", *, from_noise: bool = False
) -> Table:
    """A table of multi-call steps, `step` giving the rows of each step, from its beginning on.

    A step from below `NO_SIGNAL` is of one call; where a caller's grid says otherwise its calls are first-order steps.

    Args:
        from_noise: steps from there are as good as others; so they are for methods in the flow's sigma.
    """
    if levels.stage is None:
        raise TableError("multi-call samplers need levels with stages")
    noise_only = np.zeros(len(levels), bool) if from_noise else levels.alpha < NO_SIGNAL
    calls, i, rows = len(levels) - 1, 0, []
    stage = levels.stage[:calls]
    levels = levels.with_signal() if basis == "eps" else levels
    while i < calls:
        size = 1
        while stage[i] == 0 and i + size < calls and stage[i + size] == size:
            size += 1
        if stage[i] or (noise_only[i] and size > 1):
            for j in range(i, i + size):
                a, b = transfer(levels, j, basis)
                rows.append(Row(a, (b,)))
        else:
            rows.extend(step(levels, i, size))
        i += size
    return build(levels, rows, basis, preserves)


@dataclass(frozen=True)
class Stage:
    """x at the end of a stage, in terms of the step's beginning: a x + sum_l p[l] p_l + noise.

    Args:
        a: weight of x at the step's beginning.
        p: weights of the step's predictions, oldest first.
        noise: standard deviation of the noise drawn in this stage; earlier stages' noise decays like a.
    """

    a: float
    p: tuple[float, ...]
    noise: float = 0.0


ROUNDING = 1e-14
"""A difference of two weights that is below this share of them is zero."""


def chain(stages: Sequence[Stage]) -> list[Row]:
    """Rows for stages that are each written relative to the step's beginning.

    Every stage goes on from the x of the one before, x_j = D x_{j-1} + ..., D = a_j / a_{j-1}: nothing needs to be
    stashed, and noise drawn in earlier stages decays as the process does. A prediction that weighs the same in both is
    not needed any more: of the difference, what rounding leaves, which is another from machine to machine, is nothing.
    """
    rows: list[Row] = []
    a, weights = 1.0, np.zeros(len(stages))
    for stage in stages:
        decay, own = stage.a / a, np.zeros(len(stages))
        own[: len(stage.p)] = stage.p
        gone = decay * weights
        change = own - gone
        change[np.abs(change) <= ROUNDING * (np.abs(own) + np.abs(gone))] = 0
        newest_first = change[: len(rows) + 1][::-1]
        rows.append(Row(decay, tuple(np.trim_zeros(newest_first, "b").tolist()) or (0.0,), stage.noise))
        a, weights = stage.a, own
    return rows


class MultiCallScheduler(TableScheduler):
    """Base of schedulers whose solver steps make several calls.

    `num_inference_steps` counts network calls; custom `timesteps` and `sigmas` are those of the solver steps, and the
    calls inside them are added.
    """

    _most: ClassVar[int] = 2

    def _nodes(self, steps: Levels, i: int, size: int) -> Levels:
        """Levels of the further calls of solver step i."""
        return between(self.schedule, steps, i, [0.5])

    def _single(self, end: Levels) -> bool:
        """Whether no call can be at the end: it is clean, or in another scale than networks get."""
        return bool(end.sigma[-1] == 0) or self.schedule.scaled

    def _tail(self, clean: bool) -> tuple[int, ...]:
        """Sizes of the last solver steps."""
        return (1,) if clean else ()

    def _steps(self, calls: int) -> tuple[Levels, list[int]]:
        """The levels of the solver steps, end included, and the calls of each."""
        tail = self._tail(self._single(self._end()))
        sizes = step_sizes(calls, self._most, tail=tail)
        steps = self._grid_levels(len(sizes))
        if starts_in_noise(steps) and sizes[0] > 1:
            sizes = step_sizes(calls, self._most, head=(1,), tail=tail)
            steps = self._grid_levels(len(sizes))
        return steps, sizes

    def _calls(self, steps: Levels, sizes: Sequence[int]) -> Levels:
        """The levels of every call of these solver steps."""
        return with_nodes(steps, sizes, self._nodes)

    def _place(self, calls: int) -> Levels:
        return self._calls(*self._steps(calls))

    def _explicit_stages(self, levels: Levels) -> Levels:
        steps, tail = len(levels) - 1, self._tail(self._single(levels))
        head = (1,) if starts_in_noise(levels) else ()
        sizes = [1] * steps
        if steps > len(head) + len(tail):
            sizes = [*head, *[self._most] * (steps - len(head) - len(tail)), *tail]
        return self._calls(levels, sizes)
