"""Steps that land below the next call and add the noise up to it: Euler and Heun with churn, and Restart's jumps.

A call always tells the network the level its latent is at. Karras et al. 2022, arXiv 2206.00364, algorithm 2, adds
noise from sigma_i up to sigma-hat_i before it evaluates the network, so the level of call i is sigma-hat_i and the
noise belongs to the row before:

    row i:   sigma-hat_i  --solver-->  sigma_{i+1}  --noise-->  sigma-hat_{i+1}

and the first call of a run starts at its sigma-hat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..multistage import with_nodes
from ..schedule import Array, Levels, NoiseSchedule
from ..table import Preserves


@dataclass(frozen=True)
class RaisedLevels(Levels):
    """Levels that are reached from below.

    Args:
        landing: `(n,)`, the sigma / alpha at which the step before ends; the noise from there up to the level is added.
    """

    landing: Array | None = None

    def __getitem__(self, key: slice | Array) -> RaisedLevels:
        rest = super().__getitem__(key)
        landing = None if self.landing is None else self.landing[key]
        return RaisedLevels(rest.t, rest.alpha, rest.sigma, rest.stage, landing)

    def after(self, first: Levels) -> RaisedLevels:
        rest = super().after(first)
        landing = None if self.landing is None else np.concatenate([first.ratio, self.landing])
        return RaisedLevels(rest.t, rest.alpha, rest.sigma, rest.stage, landing)


def added_noise(levels: Levels) -> Array:
    """Standard deviation of the noise that raises x to each level, `(n,)`; zero where nothing is raised."""
    landing = getattr(levels, "landing", None)
    if landing is None:
        return np.zeros(len(levels))
    raised, std = landing < levels.ratio, np.zeros(len(levels))
    std[raised] = levels.sigma[raised] * np.sqrt(1 - (landing[raised] / levels.ratio[raised]) ** 2)
    return std


def keeps(s_noise: float) -> Preserves:
    """What a table with this factor on its added noise preserves."""
    return "marginal" if s_noise == 1 else "mean"


def raised_calls(steps: Levels, landings: Levels, sizes: Sequence[int]) -> RaisedLevels:
    """The levels of every call, where step i goes from `steps[i]` to `landings[i + 1]` and the second of two calls
    falls at its end.
    """
    calls = with_nodes(steps, sizes, lambda _, i, size: landings[i + 1 : i + 2])
    landing = calls.ratio
    assert calls.stage is not None
    landing[np.append(calls.stage == 0, True)] = landings.ratio
    return RaisedLevels(calls.t, calls.alpha, calls.sigma, calls.stage, landing)


def churned(schedule: NoiseSchedule, steps: Levels, s_churn: float, s_tmin: float, s_tmax: float) -> Levels:
    """sigma-hat of every step (arXiv 2206.00364, algorithm 2): sigma (1 + gamma), gamma = min(s_churn / n, sqrt(2) - 1)
    for sigma / alpha within [s_tmin, s_tmax].

    No level is raised above what the model was trained on, nor to the one before it: where the range begins, or steps
    are short, sigma-hat is the geometric mean of sigma and the sigma-hat before.
    """
    n, top, ratio = len(steps) - 1, schedule.ratio_range[1], steps.ratio
    gamma, hat = min(s_churn / n, math.sqrt(2) - 1), steps.ratio
    for i in range(n):
        if not s_tmin <= ratio[i] <= s_tmax or ratio[i] >= top:
            continue
        hat[i] = min(ratio[i] * (1 + gamma), top)
        if i and hat[i] >= hat[i - 1]:
            hat[i] = math.sqrt(ratio[i] * hat[i - 1])
    raised, levels = hat > ratio, Levels(steps.t.copy(), steps.alpha.copy(), steps.sigma.copy())
    new = schedule.at_lambda(-np.log(hat[raised]))
    levels.t[raised], levels.alpha[raised], levels.sigma[raised] = new.t, new.alpha, new.sigma
    return levels
