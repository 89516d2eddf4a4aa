"""The steps at which the whole network runs when features are reused in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import InputError

NAMES = ("uniform", "front-loaded", "threshold", "sampler")


def check(schedule: str | Sequence[int], threshold: float) -> None:
    """Raise `InputError` unless this is a valid schedule.

    Args:
        schedule: as in `is_full`.
        threshold: the option `cache_threshold`, used by the schedule "threshold"; see `cache.DeepFeatureCache`.
    """
    if isinstance(schedule, str):
        if schedule not in NAMES:
            raise InputError(f"cache_schedule must be one of {', '.join(NAMES)} or a list of steps, got {schedule!r}")
        if schedule == "threshold" and threshold < 0:
            raise InputError(f"cache_threshold must be a number from 0 on, got {threshold!r}")
        return
    if min(schedule, default=0) < 0 or sorted(set(schedule)) != list(schedule):
        raise InputError(f"cache_schedule as a list must be rising steps from 0 on, got {schedule!r}")


def is_full(schedule: Any, interval: int, step: int) -> bool:
    """Whether the whole network is scheduled to run at a step. It always is at step 0, where nothing is stored yet.

    Args:
        schedule: which steps are computed in full, by one of
            "uniform": 0, N, 2N, ...;
            "front-loaded": with gaps of 1, 2, 3, ... up to 2N - 1, which then stay at that, since features change
            fastest early in a run;
            a list: the steps in it;
            "threshold": step 0 only; `cache_threshold` decides about the others at run time.
        "sampler" stands for the list that the scheduler of the run names, and never comes here.
        interval: N.
        step: counted from 0.
    """
    if step == 0:
        return True
    if schedule == "uniform":
        return step % interval == 0
    if schedule == "front-loaded":
        return _front_loaded(interval, step)
    return schedule != "threshold" and step in schedule


def _front_loaded(interval: int, step: int) -> bool:
    widest = 2 * interval - 1
    place = gap = 0
    while place < step:
        gap = min(gap + 1, widest)
        place += gap
    return place == step
