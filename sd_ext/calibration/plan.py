"""What a calibration will take: predictions, from them time, and memory."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass

import torch

from ..errors import InputError
from .pipeline import PipelineProblem
from .problem import Problem
from .refine import first_calls
from .report.pictures import of_report
from .settings import Settings
from .starts import GRIDS
from .student import Student, zero
from .tables import KNOWN
from .whole_calls import most_tried

TRIES = 1.5
"""Runs that a step of the refinement takes on average: some are refused and shortened."""


def of_teacher(settings: Settings) -> int:
    """Predictions for one pair that the teacher makes at one strength."""
    return settings.teacher_calls * settings.sets.pairs


def of_refinement(problem: Problem, student: Student, settings: Settings, levels: bool) -> int:
    """Predictions for one pair that refining takes, if nothing ends it early."""
    n, sets, effort = student.calls, settings.sets, settings.effort
    each = [n if problem.stateful else n - call - after for call, after in first_calls(student, levels)]
    step = n * (TRIES * sets.fit + sets.validate)
    return round(effort.derivatives * (sum(each) * sets.fit + effort.steps * step) + n * (sets.fit + sets.validate))


def of_fit(problem: Problem, settings: Settings, calls: int, fields: int, searches: bool) -> int:
    """Predictions for one pair that a fit takes at most.

    Args:
        searches: whether all grids are tried, or the levels are given.
    """
    sets = settings.sets
    student = zero(problem.schedule, torch.linspace(-2, 2, calls).double().numpy(), fields)
    alone = zero(problem.schedule, student.lam, 1)
    starts = len(GRIDS) + 1 + most_tried(calls, settings.whole_share) if searches else 1  # `auto`'s levels too
    total = starts * calls * (sets.fit + sets.validate) + len(KNOWN) * calls * sets.validate + 3 * calls * sets.judge
    total += of_refinement(problem, student, settings, searches)
    total += calls * (calls - 1) * sets.validate  # starts in the middle, of the fitted and of the known sampler
    if fields == 2:
        total += calls * sets.fit + of_refinement(problem, alone, settings, False)
    return total


def predictions(problem: Problem, settings: Settings, report: bool = True) -> int:
    """Predictions for one pair of the whole calibration, at most; each is one call of the network with guidance.

    Args:
        report: whether a report is written, with pictures.
    """
    total = of_report(settings) if report else 0
    for guidance, leader in settings.order():
        total += of_teacher(settings)
        for calls in settings.calls:
            total += of_fit(problem, settings, calls, settings.fields_at(guidance), guidance == leader)
    return total


@dataclass(frozen=True)
class Cost:
    """What a calibration takes.

    Args:
        predictions: for one pair, at most.
        seconds: measured from one batch.
        memory: bytes: on a GPU the most that was taken there in that batch, else of this process so far; None where
            the system does not tell.
        kept: bytes of main memory for the teacher's states.
        batch: pairs in one call of the network.
    """

    predictions: int
    seconds: float
    memory: int | None
    kept: int
    batch: int


def fit_batch(problem: PipelineProblem, guidance: float) -> float:
    """Halve the problem's batch until it fits into memory, and return the seconds that one takes.

    Raises:
        InputError: a single pair does not fit.
    """
    level = problem.schedule.at([problem.schedule.t_max])
    at = float(level.t[0]), float(level.alpha[0]), float(level.sigma[0])
    while True:
        pairs = range(min(problem.batch, problem.pairs))
        try:
            problem.begin((0,))
            problem.predict(pairs, problem.start(pairs), *at, guidance)
            _wait(problem)
            began = time.perf_counter()
            problem.begin((0,))
            problem.predict(pairs, problem.start(pairs), *at, guidance)
            _wait(problem)
            return time.perf_counter() - began
        except torch.OutOfMemoryError as error:
            if len(pairs) == 1:
                raise InputError("one picture needs more memory than the device has; choose a smaller size") from error
            problem.batch = len(pairs) // 2
            torch.cuda.empty_cache()


def _wait(problem: PipelineProblem) -> None:
    if problem.starts.is_cuda:
        torch.cuda.synchronize(problem.starts.device)


def cost(problem: PipelineProblem, settings: Settings) -> Cost:
    """Measure one batch, and say what the whole will take."""
    if problem.starts.is_cuda:
        torch.cuda.reset_peak_memory_stats(problem.starts.device)
    seconds = fit_batch(problem, settings.guidance[-1])
    total = predictions(problem, settings)
    rounds = math.ceil(total / min(problem.batch, problem.pairs))
    kept = (
        2
        * settings.teacher_calls
        * len(settings.sets.with_states)
        * problem.starts[0].numel()
        * problem.starts.element_size()
    )
    return Cost(total, rounds * seconds, _peak(problem), kept, problem.batch)


def _peak(problem: PipelineProblem) -> int | None:
    if problem.starts.is_cuda:
        return torch.cuda.max_memory_allocated(problem.starts.device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
