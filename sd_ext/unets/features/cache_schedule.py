"""At which steps the whole network runs when features are reused in between."""

from __future__ import annotations

from typing import Any

from ...errors import InputError

NAMES = ("uniform", "front-loaded", "threshold")


def check(schedule: Any, threshold: Any) -> None:
    """Raise `InputError` for what is no schedule."""
    if isinstance(schedule, str):
        if schedule not in NAMES:
            raise InputError(f"cache_schedule must be one of {', '.join(NAMES)} or a list of steps, got {schedule!r}")
        if schedule == "threshold" and not (isinstance(threshold, (int, float)) and 0 <= threshold < float("inf")):
            raise InputError(f"cache_threshold must be a number from 0 on, got {threshold!r}")
        return
    whole = isinstance(schedule, (list, tuple)) and all(type(step) is int and step >= 0 for step in schedule)
    if not whole or sorted(set(schedule)) != list(schedule):
        raise InputError(f"cache_schedule as a list must be rising steps from 0 on, got {schedule!r}")


def is_full(schedule: Any, interval: int, step: int) -> bool:
    """Whether the whole network is planned to run at a step. Step 0 always does: nothing is there to reuse.

    Args:
        schedule: "uniform", steps 0, N, 2N, ...; "front-loaded", gaps of 1, 2, 3, ... up to 2N - 1 and that from then
            on, for features change fastest early; a list, those steps; "threshold", none but the first: what is
            computed decides.
        interval: N.
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
