"""Predictor-correctors at one network call a step.

From the predictions at hand, p_0 the newest, a step goes to  x' = a x + sum_j w_j p_j + noise. The next call evaluates
the network there. With what it predicts, q, the same step with the same noise is taken again by a better formula,
X' = a x + c q + sum_j c_j p_j + noise, and the run goes on from X'. Both are linear in the same slots:

    X' = x' + c q + sum_j (c_j - w_j) p_j

so the correction is part of the next call's row. There is no stash, and no noise to remember.

The weights are those of exponential Adams methods: an exact integral, under the kernel, of the polynomial through the
predictions, q among them or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from .kernel import Kernel
from .schedule import NO_SIGNAL, Array, Levels
from .table import Row

Half = Literal["bh1", "bh2"]
"""Two ways to shorten the integral of a line through two predictions, by the names UniPC's authors gave them: its first
moment is taken as half of k A ("bh1") or half of the whole weight A mu_0 ("bh2"). See `adams`.
"""


def behind(levels: Levels, i: int, j: int, calls: Sequence[int]) -> tuple[float, ...]:
    """Where calls fall relative to the step from level i to level j, in steps: 0 for call i, negative before it.

    Args:
        calls: their indices.

    Returns:
        For each, (lambda_call - lambda_i) / (lambda_j - lambda_i).
    """
    lam = levels.lam
    return tuple(0.0 if call == i else (lam[call] - lam[i]) / (lam[j] - lam[i]) for call in calls)


def adams(kernel: Kernel, nodes: Sequence[float], half: Half | None = None) -> tuple[float, ...]:
    """Weights of predictions at s = `nodes`; where they are two, one is 0.

    Args:
        kernel: of the step.
        nodes: where the predictions were made, in steps from the step's beginning; see `behind`.
        half: how UniPC and SA-Solver shorten the case of two nodes: the first moment is B(h) / 2, with B the linear
            k A ("bh1") or the whole weight A mu_0 ("bh2"; also where k is infinite). None integrates the line.
    """
    if half is None or len(nodes) != 2:
        return kernel.interpolate(nodes)
    b = kernel.scale * kernel.k if half == "bh1" and math.isfinite(kernel.k) else kernel.total
    slope = b / 2 / (nodes[0] or nodes[1])
    return tuple(slope if s else kernel.total - slope for s in nodes)


def correction(predict: Sequence[float], correct: Sequence[float]) -> Array:
    """Weights of (q, p_0, p_1, ...) that turn x' into X'; none where there is no corrector.

    Args:
        predict: the predictor's weights of p_0, p_1, ...
        correct: the corrector's of q, p_0, p_1, ...
    """
    if not len(correct):
        return np.zeros(1)
    change = np.zeros(max(len(correct), 1 + len(predict)))
    change[: len(correct)] = correct
    change[1 : 1 + len(predict)] -= predict
    return change


def possible(orders: tuple[int, int], step: Kernel, alpha: float, sigma_end: float) -> tuple[int, int]:
    """(predictor, corrector) orders a step from `alpha` can have: to sigma = 0, and on eps from a faint picture, the
    step is of order 1 and not corrected.
    """
    on_eps = step.k < 0
    return (1, 0) if sigma_end == 0 or (on_eps and alpha < NO_SIGNAL) else orders


def predictor_corrector(
    levels: Levels,
    kernel: Callable[[int], Kernel],
    orders: Callable[[int], tuple[int, int]],
    half: Half | None = None,
) -> list[Row]:
    """The rows of a run, each correcting the step before it and predicting the next.

    Args:
        kernel: the kernel of step i.
        orders: for step i, through how many predictions the predictor's polynomial goes, and the corrector's, the new
            prediction included; 0 leaves the step as predicted; see `possible`.
    """
    rows, change = [], np.zeros(1)
    for i in range(len(levels) - 1):
        step = kernel(i)
        predictor, corrector = possible(orders(i), step, levels.alpha[i], levels.sigma[i + 1])
        past = behind(levels, i, i + 1, range(i, i - max(predictor, corrector - 1), -1))
        predict = adams(step, past[:predictor], half)
        p = np.zeros(max(len(change), len(predict)))
        p[: len(change)] += step.a * change
        p[: len(predict)] += predict
        rows.append(Row(step.a, tuple(p.tolist()), step.noise))
        change = correction(predict, adams(step, (1.0, *past[: corrector - 1]), half) if corrector else ())
    return rows
