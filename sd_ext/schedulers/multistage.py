"""Two-stage solver steps, and what happens when a run starts inside one.

`levels.stage` says where the solver steps begin (0) and where their second network call falls (1). A run that starts at
a second call (img2img, inpainting, a refiner) walks to the next step's beginning with a first-order step, which has
length zero where both fall on the same level.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import TableError
from .first_order import transfer
from .schedule import Levels
from .table import KEEP_STASH, KEEP_X, Basis, Row, Table, build

SecondRow = Callable[[Levels, int], Row]
"""(levels, i) -> the row of call i + 1 that ends the step begun at call i, from stash, p1 (first call) and p0."""


def two_stage(levels: Levels, second: SecondRow, basis: Basis) -> Table:
    """A table of two-call steps: a first-order predictor to the second call's level, then `second` from the stash.

    Away from zero terminal SNR (alpha = 0, an infinite step in lambda) both calls are first-order steps.
    """
    if levels.stage is None:
        raise TableError("two-stage samplers need levels with stages")
    pair = (levels.stage[:-1] == 0) & (levels.stage[1:] == 1) & (levels.alpha[: len(levels) - 2] > 0)
    levels = levels.with_signal() if basis == "eps" else levels
    n, i, rows = len(levels) - 1, 0, []
    while i < n:
        a, b = transfer(levels, i, basis)
        if i + 1 < n and pair[i]:
            rows.append((Row(a, (b,)), KEEP_X))
            rows.append((second(levels, i), KEEP_STASH))
            i += 2
        else:
            rows.append(Row(a, (b,)))
            i += 1
    return build(levels, rows, basis)


def heun_levels(levels: Levels, single_first: bool = False) -> Levels:
    """The calls of Heun's method on the solver steps `levels` (end included): every inner level twice.

    n steps make 2n - 1 calls, the last step being a single one; `single_first` makes the first step, where the
    trajectory is straightest, a single call too: 2n - 2.
    """
    steps = len(levels) - 1
    repeats = np.full(steps + 1, 2)
    repeats[[0, -1]] = 1
    stage = [0] + [1, 0] * (steps - 1)
    if single_first and steps > 1:
        repeats[1] = 1
        del stage[1]
    return levels[np.repeat(np.arange(steps + 1), repeats)].with_stages(stage)


def heun(levels: Levels) -> Table:
    """Heun's method in sigma / alpha (Karras et al. 2022, arXiv 2206.00364, algorithm 1).

    Order 2, 2 calls a step (1 for a step to sigma = 0). Other names: HeunDiscreteScheduler, "heun".
    """

    def second(levels: Levels, i: int) -> Row:
        scale, whole = transfer(levels, i, "eps")
        return Row(stash=scale, p=(whole / 2, whole / 2))

    return two_stage(levels, second, "eps")
