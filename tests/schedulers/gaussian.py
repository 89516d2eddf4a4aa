"""What a table makes of data that is one Gaussian, exactly: the mean and the standard deviation of the end of its run.

On N(mean, std^2) every prediction is linear in x, so a run is a linear combination of 1, the standardised start and the
noises of its calls; a table can be run on their coefficients. Where sampling would need millions of runs to tell a
standard deviation from one that is a thousandth off, this knows it to rounding.
"""

from __future__ import annotations

import numpy as np

from sd_ext.schedulers.table import P0, STASH, Table, X

MEAN, STD = 0.6, 0.3


def end_of_run(table: Table, mean: float = MEAN, std: float = STD) -> tuple[float, float]:
    """(mean, standard deviation) at the end, of a run that starts in the exact marginal."""
    alpha, sigma = table.levels.alpha, table.levels.sigma
    slots = np.zeros((3 + table.history, 2 + table.calls))
    slots[X, :2] = alpha[0] * mean, np.hypot(alpha[0] * std, sigma[0])
    one = np.eye(2 + table.calls)[0]
    for i, row in enumerate(table.rows):
        slots[P0 + 1 : -1] = slots[P0:-2].copy()
        gain = alpha[i] * std**2 / ((alpha[i] * std) ** 2 + sigma[i] ** 2)
        x0 = mean * one + gain * (slots[X] - alpha[i] * mean * one)
        slots[P0] = x0 if table.basis == "x0" else (slots[X] - alpha[i] * x0) / sigma[i]
        slots[-1] = np.eye(2 + table.calls)[2 + i]
        both = row[:, P0:-1].reshape(2, table.fields, -1).sum(1)  # without guidance both fields are one
        slots[: STASH + 1] = np.concatenate([row[:, :P0], both, row[:, -1:]], axis=1) @ slots
    return float(slots[X, 0]), float(np.linalg.norm(slots[X, 1:]))


def error(table: Table, mean: float = MEAN, std: float = STD) -> float:
    """How far the end's moments are off, in standard deviations: the larger of mean and standard deviation."""
    got_mean, got_std = end_of_run(table, mean, std)
    alpha, sigma = table.levels.alpha[-1], table.levels.sigma[-1]
    true_std = np.hypot(alpha * std, sigma)
    return max(abs(got_mean - alpha * mean), abs(got_std - true_std)) / true_std
