"""Where a known sampler makes a run, or the rest of one, in place of a table that was fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..base import TableScheduler
from ..find import find_sampler
from ..make import make_scheduler
from ..schedule import Levels
from ..table import Table
from .fits import Fit
from .variants import takes_noise, with_noise

ONE_CALL = "dpm++ 2m"
"""What goes on from the middle of a fitted run in the place of samplers that place calls of their own."""


@dataclass(frozen=True)
class Announced(Levels):
    """The levels of an announced run, and who makes it.

    Args:
        fit: what was found for it; its table makes the run, if it has one.
        own: the known sampler's own levels, where that makes the run.
        start: what the first noise is scaled by.
    """

    fit: Fit | None = None
    own: Levels | None = None
    start: float = 1.0

    @property
    def apart(self) -> bool:
        """Whether told timesteps may be others than those of the levels; see `Stepping.add_noise`."""
        return self.own is None


def plain(levels: Levels) -> Levels:
    """Just the levels."""
    return Levels(levels.t, levels.alpha, levels.sigma)


def fitted_levels(fit: Fit) -> Announced:
    """The levels of a run that a fit's table makes."""
    assert fit.table is not None
    levels = fit.table.levels
    return Announced(levels.t, levels.alpha, levels.sigma, None, fit)


def known_sampler(name: str, config: Mapping[str, Any], guidance: float) -> TableScheduler:
    """A known sampler for a model, told the guidance if it asks for it as `auto` does.

    Args:
        name: as `make_scheduler` takes it.
        config: the scheduler config it is made for.
        guidance: the strength of guidance.
    """
    info, _ = find_sampler(name)
    return make_scheduler(name, config, **info.told(guidance))


class KnownSamplers:
    """Known samplers for one model, each made when it is first needed.

    Args:
        config: the scheduler config they are made for.
    """

    def __init__(self, config: Mapping[str, Any]):
        self._config, self._made = dict(config), dict[tuple[str, float], TableScheduler]()

    def of(self, fit: Fit) -> TableScheduler:
        """The best known sampler for what a fit is for."""
        return self._get(fit.known, fit.guidance)

    def _get(self, name: str, guidance: float) -> TableScheduler:
        if (name, guidance) not in self._made:
            self._made[name, guidance] = known_sampler(name, self._config, guidance)
        return self._made[name, guidance]

    def place(self, fit: Fit, levels: Levels | None = None) -> Announced:
        """The levels of a run that a fit's known sampler makes.

        Args:
            fit: of the run.
            levels: of its calls and the end, where the caller has chosen them; else the sampler's own grid is used.
        """
        known = self.of(fit)
        if levels is None:
            known.set_timesteps(fit.calls)
        else:
            known.announce(levels)
        own = known.levels
        return Announced(own.t, own.alpha, own.sigma, own.stage, fit, own, float(known.init_noise_sigma))

    def staged(self, fit: Fit, levels: Levels) -> Levels:
        """The levels of every call, where the caller has chosen those of solver steps."""
        return self.of(fit)._explicit_stages(levels)

    def goes_on(self, fit: Fit, fitted: Levels) -> tuple[str, Table]:
        """A known sampler's table for the rest of a fitted run.

        The timesteps that are told have been announced. The latent is at the fitted level; from the next call on the
        levels are those that belong to the told timesteps.

        Args:
            fit: of the run.
            fitted: the levels of the calls that are left, and the end.

        Returns:
            The name of the sampler, which is another one where this one places calls of its own, and the table.
        """
        known = self.of(fit)
        levels = fitted[:1].then(known.schedule.at_told(fitted.t[1:-1])).then(fitted[-1:])
        if np.any(np.diff(levels.ratio) >= 0):
            levels = plain(fitted)
        if len(staged := known._explicit_stages(levels)) != len(levels):
            return ONE_CALL, self._get(ONE_CALL, fit.guidance)._table(levels, 0.0)
        return fit.known, known._table(staged, 0.0)


def noisy(table: Table, eta: float) -> tuple[Table, str]:
    """A known sampler's table with fresh noise, and what has to be said where it takes none."""
    if not eta:
        return table, ""
    return (with_noise(table, eta), "") if takes_noise(table) else (table, f"takes no noise, eta {eta:g} is not used")
