"""The outcome of a calibration."""

from __future__ import annotations

from dataclasses import dataclass

from ..schedulers.calibrated import Calibration
from .settings import Settings
from .store import Finished


@dataclass(frozen=True)
class Calibrated:
    """A calibration with what a report tells of it.

    Args:
        calibration: the fits.
        settings: what was asked.
        prompts: of each pair; see `Settings.sets` for which set it is in.
        finished: the fits with what they took.
    """

    calibration: Calibration
    settings: Settings
    prompts: tuple[str, ...]
    finished: tuple[Finished, ...]

    def at(self, calls: int, guidance: float) -> Finished:
        """The fit for a number of calls at a strength that was asked for."""
        return next(f for f in self.finished if (f.fit.calls, f.fit.guidance) == (calls, guidance))
