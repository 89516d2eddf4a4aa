"""How far ends are from the teacher's."""

from __future__ import annotations

import math

from torch import Tensor


def of_each(end: Tensor, teacher: Tensor) -> Tensor:
    """Mean square difference of each pair, `(pairs,)` in float64."""
    return (end - teacher).cpu().double().pow(2).flatten(1).mean(1)


def rmse(end: Tensor, teacher: Tensor) -> float:
    """Root mean square difference of a picture, averaged over pictures; infinite where a run has left the numbers.

    Averaged so, the few starts that lie between two pictures, and come out as the other one, count once each.
    """
    value = float(of_each(end, teacher).sqrt().mean())
    return value if math.isfinite(value) else math.inf


def spread(end: Tensor, teacher: Tensor) -> float:
    """Standard deviation of all numbers beside the teacher's: less than 1 is pale, more is burnt."""
    return float(end.cpu().double().std() / teacher.cpu().double().std())
