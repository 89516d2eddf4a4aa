"""Known samplers on a problem: any table is run, and the best on some pairs is found."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..schedulers import Table
from ..schedulers.calibrated.known import known_sampler
from ..schedulers.run import Run
from .measure import rmse
from .student import Course

KNOWN = (
    *("auto", "auto low guidance"),
    *("dpm++ 2m karras", "dpm++ 2m trailing", "dpm++ 2m exponential", "dpm++ 2m lambda_uniform"),
    *("dpm++ 2s lambda_uniform", "dpm++ 3m trailing", "ddim trailing", "euler karras", "deis trailing"),
    *("unipc trailing", "unipc karras", "unipc eps lambda_uniform", "unipc 3 eps karras", "ipndm beta57"),
)
"""Samplers that a fit has to beat: the settings that are best in Diffusers for some model, guidance or number of calls,
and this package's own. All are deterministic, so that they lead to the teacher's picture."""


def follow(course: Course, pairs: range, table: Table, start: Tensor | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Run a deterministic table on pairs that fit into one batch, call by call.

    Args:
        course: the problem and the guidance.
        pairs: whose latents these are.
        table: the sampler.
        start: where they are before the first call; by default full noise.

    Yields:
        x before each call and the guided x0 prediction from it; at last the end, twice.
    """
    levels, run = table.levels, Run(table, "sample")  # the predictions are x0 already
    course.problem.begin(course.whole_calls)
    x = course.problem.start(pairs) if start is None else start
    for i in range(table.calls):
        level = float(levels.t[i]), float(levels.alpha[i]), float(levels.sigma[i])
        p, u = course.problem.predict(pairs, x, *level, course.guidance)
        course.on_calls(len(pairs))
        yield x, p
        x = run.advance(x, p, None, u)
    yield x, x


def end(course: Course, table: Table, start: Tensor | None = None) -> Tensor:
    """Where a deterministic table leads, `(pairs, ...)`.

    Args:
        course: on which pairs.
        table: the sampler.
        start: where the pairs are before the first call, `(pairs, ...)`; by default full noise.
    """
    ends = [course.problem.start(course.pairs[:0])]
    for part in course.problem.batches(range(len(course.pairs))):
        pairs, rows = course.pairs[part.start : part.stop], slice(part.start, part.stop)
        ends.append(deque(follow(course, pairs, table, None if start is None else start[rows]), 1).pop()[0])
    return torch.cat(ends)


def known_table(name: str, calls: int, config: Mapping[str, Any], guidance: float = 7.5) -> Table | None:
    """The table of a known sampler; None if it cannot make so many calls, or needs other things than predictions.

    Args:
        name: as `make_scheduler` takes it.
        calls: network calls.
        config: of the model's scheduler.
        guidance: the strength of guidance, which `auto` is told.
    """
    try:
        scheduler = known_sampler(name, config, guidance)
        scheduler.set_timesteps(calls)
        table = scheduler.table()
    except InputError:
        return None
    return None if table.stochastic else table


def best_known(course: Course, teacher: Tensor, calls: int, config: Mapping[str, Any]) -> tuple[str, float]:
    """The known sampler that comes nearest to the teacher with so many calls, and its RMSE.

    Args:
        course: the pairs to measure on.
        teacher: its ends for them.
        calls: network calls.
        config: of the model's scheduler.

    Raises:
        InputError: none can make so many calls.
    """
    found = {}
    for name in KNOWN:
        if (table := known_table(name, calls, config, course.guidance)) is not None:
            found[name] = rmse(end(course, table), teacher)
    finite = {name: value for name, value in found.items() if math.isfinite(value)}
    if not finite:
        raise InputError(f"no known sampler can make {calls} calls with this model's noise schedule; choose more")
    best = min(finite, key=lambda name: finite[name])
    return best, finite[best]
