"""Which calls of a run compute the whole network; the others reuse its deep features (see `unets.features.cache`).

The last calls of a run need other features than the first, and what a sampler makes of a reused prediction depends on
its weights. So the calls are chosen as grids are: by the error of a fitted student on pairs that were not fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

Whole = tuple[int, ...]
"""The calls that are whole, from 0, rising. Call 0 always is: nothing has been kept before it."""

ROUNDS = 3
"""How often all exchanges are tried, at most; two have been enough where it was looked at."""


def count(calls: int, share: float) -> int:
    """How many of so many calls are whole at a share of them."""
    return min(calls, max(1, round(share * calls)))


def evenly(calls: int, share: float) -> Whole | None:
    """So many whole calls, spread evenly; None where all calls of all networks are."""
    whole = count(calls, share)
    return None if share == 1 else tuple(i * calls // whole for i in range(whole))


def exchanges(whole: Whole, calls: int) -> Iterator[Whole]:
    """All choices that differ in one whole call; the first stays."""
    others = [call for call in range(calls) if call not in whole]
    for given in whole[1:]:
        for taken in others:
            yield tuple(sorted({*whole, taken} - {given}))


def most_tried(calls: int, share: float) -> int:
    """How many choices `best` tries at most."""
    whole = count(calls, share)
    return ROUNDS * (whole - 1) * (calls - whole)


def best(start: Whole, calls: int, error: Callable[[Whole], float]) -> Whole:
    """Exchange whole calls, the best exchange first, as long as the error falls.

    Args:
        start: where to begin.
        calls: of a run.
        error: of a choice.
    """
    known = {start: error(start)}
    found = start
    for _ in range(ROUNDS):
        tried = [*exchanges(found, calls)]
        known |= {each: error(each) for each in tried if each not in known}
        better = min([found, *tried], key=lambda each: known[each])
        if better == found:
            break
        found = better
    return found
