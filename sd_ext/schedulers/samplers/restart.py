"""Restart: Heun's method with jumps back up in noise (Xu et al. 2023, arXiv 2306.14878, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import numpy as np

from ...errors import InputError
from ..grids.by_ratio import karras
from ..info import SamplerInfo
from ..multistage import MultiCallScheduler
from ..schedule import Levels
from ..table import Table
from .churn import raised_calls
from .first_order import SigmaStart
from .heun import heun

__all__ = ["RestartScheduler"]


def concatenate(*parts: Levels) -> Levels:
    return reduce(Levels.then, parts)


class RestartScheduler(SigmaStart, MultiCallScheduler):
    """Restart sampling.

    The run goes down a main grid. At its level nearest to `restart_min` it adds noise up to `restart_max`, comes down
    again on a Karras grid, and does so `restarts` times before it goes on. Every step is Heun's; see `heun`, which this
    is exactly where there is no restart.

    Order 2, 2 calls a step. Other names: "Restart". Source: arXiv 2306.14878, section 3.1.

    The calls of a run are all counted: of n calls each of k restarts takes 2 `restart_steps`, the main grid the rest.
    Unless told otherwise, restarts share half of the calls, and there are at most n / 6 of them; those that would leave
    the main grid less than 3 calls are left out.

    Levels rise at a jump, and a restart's levels come again. image-to-image counts calls, as everywhere: a start may
    lie inside a restart, at that call's own level.

    Args:
        restarts: how often to restart.
        restart_min, restart_max: sigma / alpha between which to restart; the grid's own ends limit them.
        restart_steps: solver steps of each restart; None shares out half of the calls.
    """

    restarts: int = 1
    restart_min: float = 0.1
    restart_max: float = 2.0
    restart_steps: int | None = None

    def _setup(self) -> None:
        super()._setup()
        config = self.config
        if not isinstance(config["restarts"], int) or config["restarts"] < 0:
            raise InputError(f"RestartScheduler: restarts must be a whole number from 0, got {config['restarts']!r}")
        steps = config["restart_steps"]
        if steps is not None and (not isinstance(steps, int) or steps < 1):
            raise InputError(f"RestartScheduler: restart_steps must be a whole number from 1 or None, got {steps!r}")
        if not 0 < config["restart_min"] < config["restart_max"]:
            raise InputError(
                "RestartScheduler: restart_min must be positive and below restart_max, got "
                f"{config['restart_min']!r} and {config['restart_max']!r}"
            )

    def _shares(self, calls: int) -> tuple[int, int]:
        """(restarts, solver steps of each) of a run of `calls` calls."""
        restarts, steps = self.config["restarts"], self.config["restart_steps"]
        if steps is not None:
            return max(0, min(restarts, (calls - 3) // (2 * steps))), steps
        restarts = min(restarts, calls // 6)
        return restarts, calls // (4 * restarts) if restarts else 0

    def _place(self, calls: int) -> Levels:
        restarts, again = self._shares(calls)
        steps, sizes = self._steps(calls - 2 * restarts * again)
        return self._restarted(steps, sizes, restarts, again)

    def _calls(self, steps: Levels, sizes: Sequence[int]) -> Levels:
        """For steps that the caller chose: restarts have as many steps as these, or `restart_steps`."""
        restarts = self.config["restarts"] if len(sizes) > 1 else 0
        again = self.config["restart_steps"] or max(1, len(sizes) // max(1, restarts))
        return self._restarted(steps, sizes, restarts, again)

    def _nodes(self, steps: Levels, i: int, size: int) -> Levels:
        return steps[i + 1 : i + 2]

    def _restarted(self, steps: Levels, sizes: Sequence[int], restarts: int, again: int) -> Levels:
        """The levels of every call, with `restarts` restarts of `again` steps."""
        if not restarts:
            return super()._calls(steps, sizes)
        at, ratio = self._interval(steps)
        block = self.schedule.at_lambda(-np.log(karras(*ratio, again + 1)[:-1]))
        landing = concatenate(steps[at : at + 1], block[1:])
        starts = concatenate(steps[:at], *[block] * restarts, steps[at:])
        ends = concatenate(steps[:at], *[landing] * restarts, steps[at:])
        return raised_calls(starts, ends, [*sizes[:at], *[2] * (again * restarts), *sizes[at:]])

    def _interval(self, steps: Levels) -> tuple[int, tuple[float, float]]:
        """The step before which to jump, and sigma / alpha from and to where."""
        inner = steps.ratio[1:-1]
        at = 1 + int(np.argmin(np.abs(np.log(inner / self.config["restart_min"]))))
        low, first = float(steps.ratio[at]), float(steps.ratio[0])
        return at, (low, min(max(self.config["restart_max"], 2 * low), first))

    def _table(self, levels: Levels, eta: float) -> Table:
        return heun(levels)


SAMPLERS = (
    SamplerInfo(
        "restart",
        RestartScheduler,
        2,
        "arXiv 2306.14878, section 3.1",
        ("restart sampler",),
        calls="2",
        stochastic=True,
        note="Heun with jumps back up in noise",
    ),
)
