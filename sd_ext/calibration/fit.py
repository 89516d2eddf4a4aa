"""One fit: a student for a number of calls at a strength of guidance, chosen, refined and judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..schedulers import Table
from ..schedulers.calibrated import CalibratedScheduler, Calibration, Fit
from ..schedulers.calibrated.fits import from_call
from ..schedulers.samplers.fitted import find
from .greedy import greedy
from .measure import rmse, spread
from .problem import OnCalls, Problem, Sets
from .refine import Effort, refine
from .starts import AS_AUTO, GRIDS
from .student import Course, Student, zero
from .tables import best_known, end, known_table
from .teacher import Teacher
from .whole_calls import best, evenly


@dataclass(frozen=True)
class Shape:
    """Where a student's calls are: what fits at several strengths of guidance share, so that weights between them can
    be interpolated.

    Args:
        grid: the name of the grid that it was fitted from, one of `starts.GRIDS`.
        lam: lambda of each call's level.
        told: by how much the lambda that the network is told differs from it.
        whole_calls: the calls that compute the whole network; None is every one.
    """

    grid: str
    lam: tuple[float, ...]
    told: tuple[float, ...]
    whole_calls: tuple[int, ...] | None = None

    @classmethod
    def of(cls, grid: str, student: Student, whole_calls: tuple[int, ...] | None = None) -> Shape:
        return cls(grid, tuple(student.lam.tolist()), tuple(student.told.tolist()), whole_calls)

    def student(self, problem: Problem, fields: int) -> Student:
        """A student of this shape without weights."""
        return zero(problem.schedule, np.array(self.lam), fields, np.array(self.told))


@dataclass(frozen=True)
class Fitting:
    """What fits at one strength of guidance have in common.

    Args:
        problem, sets: what is fitted on.
        guidance: the strength.
        fields: 1, or 2 to weigh predictions without the prompt.
        teacher: at this strength.
        config: of the model's scheduler.
        effort: how long to refine.
        on_calls: told of predictions.
        whole_share: share of the calls that compute the whole network, of one that reuses features as it is told.
        whole_calls: which these are; None is every one. `fit` finds them.
    """

    problem: Problem
    sets: Sets
    guidance: float
    fields: int
    teacher: Teacher
    config: Mapping[str, Any]
    effort: Effort = field(default_factory=Effort)
    on_calls: OnCalls = lambda calls: None
    whole_share: float = 1.0
    whole_calls: tuple[int, ...] | None = None

    def on(self, pairs: range, begin: int = 0) -> Course:
        """These pairs, for runs that begin at a call."""
        whole = self.whole_calls and from_call(self.whole_calls, begin)
        return Course(self.problem, pairs, self.guidance, self.on_calls, whole)

    def error(self, student: Student, pairs: range) -> float:
        return rmse(self.on(pairs).run(student).end, self.goal(pairs))

    def goal(self, pairs: range) -> Any:
        """The teacher's ends."""
        return self.teacher.end[pairs.start : pairs.stop]

    def best_start(self, calls: int) -> tuple[str, Student]:
        """The grid whose greedy student is best on pairs that were not fitted, and that student."""
        schedule = self.problem.schedule
        starts = {name: zero(schedule, place(self.teacher, calls), self.fields) for name, place in GRIDS.items()}
        if (known := find(schedule, self.guidance, calls)) is not None:
            starts[AS_AUTO] = zero(schedule, np.array(known.lam), self.fields, np.array(known.told))
        found = {name: greedy(self.on(self.sets.for_fit), self.teacher, each) for name, each in starts.items()}
        errors = {name: self.error(student, self.sets.for_validation) for name, student in found.items()}
        best = min(errors, key=lambda name: errors[name])
        return best, found[best]

    def with_best_calls(self, calls: int) -> tuple[Fitting, str, Student]:
        """The grid, and on it the calls that are whole, whose greedy student is best on pairs that were not fitted;
        this fitting with those calls, and that student.
        """
        even = replace(self, whole_calls=evenly(calls, self.whole_share))
        grid, student = even.best_start(calls)
        if even.whole_calls is None:
            return even, grid, student
        found = {even.whole_calls: student}

        def error(whole: tuple[int, ...]) -> float:
            other = replace(self, whole_calls=whole)
            if whole not in found:
                found[whole] = greedy(other.on(self.sets.for_fit), self.teacher, student)
            return other.error(found[whole], self.sets.for_validation)

        whole = best(even.whole_calls, calls, error)
        return replace(self, whole_calls=whole), grid, found[whole]

    def refined(self, student: Student, levels: bool) -> Student:
        fitted, checked = self.on(self.sets.for_fit), self.on(self.sets.for_validation)
        return refine(fitted, self.teacher, student, checked, self.effort, levels)

    def begun(self, calls: int, shape: Shape | None) -> tuple[Fitting, str, Student]:
        """The greedy stage, from all grids or with the levels and whole calls of another strength's fit; as
        `with_best_calls` returns it.
        """
        if shape is None:
            return self.with_best_calls(calls)
        here = replace(self, whole_calls=shape.whole_calls)
        return (
            here,
            shape.grid,
            greedy(here.on(self.sets.for_fit), self.teacher, shape.student(self.problem, self.fields)),
        )

    def student(self, calls: int, shape: Shape | None) -> tuple[str, Student]:
        """The fitted student and its grid; its levels move only where they are not another strength's."""
        here, grid, student = self.begun(calls, shape)
        return grid, here.refined(student, levels=shape is None)

    def companion(self, student: Student) -> Student:
        """The student of one field on another's levels."""
        alone = zero(student.schedule, student.lam, 1, student.told)
        return self.refined(greedy(self.on(self.sets.for_fit), self.teacher, alone), levels=False)

    def fit(self, calls: int, shape: Shape | None = None) -> tuple[Fit, Shape]:
        """Fit, choose between the student and the best known sampler on the second set, and judge on the third.

        Args:
            calls: network evaluations.
            shape: levels to share with a fit at another strength; None searches for them.
        """
        here, grid, student = self.begun(calls, shape)
        student = here.refined(student, levels=shape is None)
        fit = here.chosen(calls, grid, student)
        return replace(fit, starts=here.starts(fit)), Shape.of(grid, student, here.whole_calls)

    def chosen(self, calls: int, grid: str, student: Student) -> Fit:
        """The student, or the best known sampler where that is better on the second set; judged on the third."""
        known, known_error = best_known(
            self.on(self.sets.for_validation), self.goal(self.sets.for_validation), calls, self.config
        )
        wins = self.error(student, self.sets.for_validation) < known_error
        alone = self.companion(student) if self.fields == 2 else student
        errors = self.judged(student, alone, known, calls)
        return Fit(
            calls,
            self.guidance,
            student.table() if wins else None,
            alone.table() if wins and self.fields == 2 else None,
            known,
            errors,
            grid=grid,
            whole_calls=self.whole_calls,
        )

    def starts(self, fit: Fit) -> dict[int, bool]:
        """For runs that begin at a later call (image to image), whether the rest of the fitted table is better than the
        known sampler: from the teacher's states at that level to its ends.
        """
        pairs, found = self.sets.for_validation, {}
        lam = [] if fit.table is None else fit.table.levels.lam[: fit.calls].tolist()
        for call, level in list(enumerate(lam))[1:]:
            state = self.teacher.target(pairs, level)
            errors = [
                rmse(end(self.on(pairs, call), self.rest(fit, call, fitted), state), self.goal(pairs))
                for fitted in (True, False)
            ]
            found[call] = errors[0] < errors[1]
        return found

    def rest(self, fit: Fit, call: int, fitted: bool) -> Table:
        """What a run that begins at a call is made by: the rest of the fitted table, or the known sampler."""
        calibration = Calibration((replace(fit, starts={call: fitted}),))
        scheduler = CalibratedScheduler.from_calibration(calibration, self.config, guidance_scale=fit.guidance)
        scheduler.set_timesteps(fit.calls)
        return scheduler.table(call)

    def judged(self, student: Student, alone: Student, known: str, calls: int) -> dict[str, float]:
        """Errors and spreads on pairs that nothing was fitted to or chosen on."""
        pairs = self.sets.for_judgement
        table = known_table(known, calls, self.config, self.guidance)
        assert table is not None
        ends = {
            "fitted": self.on(pairs).run(student).end,
            "one_field": self.on(pairs).run(alone).end,
            "known": end(self.on(pairs), table),
        }
        goal = self.goal(pairs)
        errors = {name: rmse(each, goal) for name, each in ends.items()}
        return errors | {f"{name}_spread": spread(each, goal) for name, each in ends.items()}
