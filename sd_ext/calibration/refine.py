"""Levenberg-Marquardt on the end error: weights, levels and told levels together.

The greedy stage looks one call ahead. Here all numbers of a student are moved so that the last picture comes nearer to
the teacher's. The derivative is found by forward differences, with forward passes only: what lies before a change is
reused, so a weight of call i costs the calls after it. Between such derivatives one is kept up to date from the steps
that were made (Broyden 1965; Madsen, Nielsen & Tingleff 2004, section 3.5), which costs one run a step.

Pictures on the border between two outcomes are far off whatever the sampler does. Cauchy weights keep these few from
deciding: a pair's square error q counts as c log(1 + q / c), c nine times the median.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..schedulers.schedule import Array
from .measure import of_each, rmse
from .student import Course, Ran, State, Student
from .teacher import Teacher

ROBUST = 9.0
"""The scale of Cauchy weights, in medians."""
NUMBERS = 2**18
"""At most so many numbers of the end error are in the derivative, spread evenly."""
APART = 1e-3
"""Least distance of two levels in lambda."""
FARTHEST = 2.0
"""How far, in lambda, what the network is told may be from the level."""
WORTH = 2e-3
"""An iteration that gains less than this share of the error is the last with its derivative."""


@dataclass(frozen=True)
class Effort:
    """How long to refine.

    Args:
        derivatives: how often the derivative is found anew, at most.
        steps: steps made with each, at most.
    """

    derivatives: int = 3
    steps: int = 4

    def check(self) -> None:
        """Raise `InputError` for numbers that cannot be."""
        if self.derivatives < 0 or self.steps < 1:
            raise InputError(
                f"refining with {self.derivatives} derivatives and {self.steps} steps each cannot be; choose 0 (no "
                "refinement) or more, and 1 or more"
            )


def pack(student: Student, levels: bool = True) -> Array:
    """A student's free numbers: weights and, unless they stay, levels after the first and told levels."""
    return np.concatenate([*student.weights, *([student.lam[1:], student.told] if levels else [])])


def unpack(student: Student, numbers: Array) -> Student:
    """The student with other numbers; what is not among them stays."""
    sizes = [len(weights) for weights in student.weights]
    *weights, rest = np.split(numbers, np.cumsum(sizes))
    if not len(rest):
        return replace(student, weights=tuple(weights))
    later, told = np.split(rest, [student.calls - 1])
    return replace(student, weights=tuple(weights), lam=np.concatenate([student.lam[:1], later]), told=told)


def first_calls(student: Student, levels: bool = True) -> list[tuple[int, bool]]:
    """For each free number, the first call that it changes, and whether only the step after that call's prediction."""
    n = student.calls
    weights = [(i, True) for i, some in enumerate(student.weights) for _ in some]
    return [*weights, *([*((i, True) for i in range(n - 1)), *((i, False) for i in range(n))] if levels else [])]


def allowed(student: Student) -> bool:
    """Whether levels and told timesteps keep their order within the trained range, and are not far from each other."""
    rises = bool(np.all(np.diff(student.lam) > APART)) and bool(np.all(np.diff(student.levels.t[:-1]) < 0))
    return rises and student.lam[-1] <= student.schedule.lam.max() and bool(np.all(np.abs(student.told) < FARTHEST))


def _from(course: Course, student: Student, states: list[State], call: int, after: bool) -> Ran:
    """Run a changed student from the first call that the change matters to."""
    state = states[call]
    if not after:
        return course.run(student, call, state)
    x = student.step(call, state.x, state.seen)
    if call == student.calls - 1 and not course.problem.stateful:
        return Ran(x, [])
    return course.run(student, call + 1, State(x, state.seen, state.seen))


class _Residual:
    """The end error as a vector of manageable length, `(pairs * kept,)` in float64."""

    def __init__(self, teacher: Tensor):
        self.teacher, each = teacher, teacher[0].numel()
        kept = max(1, NUMBERS // len(teacher))
        self.places = torch.arange(0, each, max(1, each // kept))[:kept] if each > kept else slice(None)

    def __call__(self, end: Tensor) -> Tensor:
        return (end - self.teacher).flatten(1)[:, self.places].cpu().double()


def _weights(errors: Tensor) -> tuple[Tensor, float]:
    """Cauchy weights of the pairs, and their scale c."""
    scale = ROBUST * float(errors.median()) + 1e-300
    return 1 / (1 + errors / scale), scale


def _cost(errors: Tensor, scale: float) -> float:
    value = float((scale * torch.log1p(errors / scale)).mean())
    return value if np.isfinite(value) else np.inf


def derivative(course: Course, student: Student, ran: Ran, residual: _Residual, levels: bool = True) -> Tensor:
    """d end / d number by forward differences, `(numbers, pairs * kept)` in float64."""
    numbers, here, rows = pack(student, levels), residual(ran.end), []
    for place, (call, after) in enumerate(first_calls(student, levels)):
        moved = numbers.copy()
        moved[place] += course.problem.step
        end = _from(course, unpack(student, moved), ran.states, call, after).end
        rows.append(((residual(end) - here) / course.problem.step).flatten())
    return torch.stack(rows)


def refine(
    course: Course, teacher: Teacher, student: Student, check: Course, effort: Effort = Effort(), levels: bool = True
) -> Student:
    """Improve a student.

    Args:
        course: the pairs for fitting.
        teacher: where they should end.
        student: where to begin.
        check: the pairs for validation, on which the best of all students on the way is chosen.
        effort: how long.
        levels: whether levels and told levels may move as well.
    """
    target = teacher.end[course.pairs.start : course.pairs.stop]
    goal = teacher.end[check.pairs.start : check.pairs.stop]
    residual, damping = _Residual(target), 1e-2
    ran = course.run(student)
    best, best_error = student, rmse(check.run(student).end, goal)
    for _ in range(effort.derivatives):
        slopes = derivative(course, student, ran, residual, levels)
        gained = False
        for _number in range(effort.steps):
            weights, scale = _weights(of_each(ran.end, target))
            found = _step(course, student, pack(student, levels), ran, slopes, residual, weights, scale, damping)
            damping = found.damping
            if found.student is None:
                break
            gain = 1 - found.cost / _cost(of_each(ran.end, target), scale)
            moved = torch.from_numpy(pack(found.student, levels) - pack(student, levels))
            change = (residual(found.ran.end) - residual(ran.end)).flatten() - moved @ slopes
            metric = moved * (slopes * slopes).mean(1)
            slopes += torch.outer(metric, change) / float(moved @ metric)
            student, ran = found.student, found.ran
            error = rmse(check.run(student).end, goal)
            if error < best_error:
                best, best_error = student, error
            gained = gained or gain > WORTH
            if gain < WORTH:
                break
        if not gained:
            break
    return best


@dataclass
class _Found:
    """A step that made the error less; `student` is None if none was found."""

    student: Student | None
    ran: Ran
    cost: float
    damping: float


def _step(
    course: Course,
    student: Student,
    numbers: Array,
    ran: Ran,
    slopes: Tensor,
    residual: _Residual,
    weights: Tensor,
    scale: float,
    damping: float,
) -> _Found:
    rest = residual(ran.end)
    of_numbers = weights[:, None].expand_as(rest).flatten()
    weighed = slopes * of_numbers
    normal, right = (weighed @ slopes.T) / len(of_numbers), (weighed @ rest.flatten()) / len(of_numbers)
    before = _cost(of_each(ran.end, residual.teacher), scale)
    for _ in range(6):
        held = normal + damping * torch.diag(normal.diagonal() + 1e-8)
        new = unpack(student, numbers - torch.linalg.solve(held, right).numpy())
        if allowed(new):
            after = course.run(new)
            cost = _cost(of_each(after.end, residual.teacher), scale)
            if cost < before:
                return _Found(new, after, cost, max(damping / 5, 1e-6))
        damping *= 5
    return _Found(None, ran, before, damping)
