"""What a grid is: a name, a formula and its options, and the noise levels they give on a model's schedule."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ...errors import InputError
from ..schedule import Array, Levels, NoiseSchedule


@dataclass(frozen=True)
class GridOptions:
    """What a scheduler's config says about its grid, in one place.

    Args:
        offset: Diffusers' `steps_offset`.
        closed: whether "linspace" and "leading" include t = 0, as DDIM's do and DPM-Solver's do not.
        whole: whether "linspace" rounds to whole timesteps.
        low, high: smallest and largest sigma / alpha for ratio grids.
        t_max: the noisiest training time to use; timesteps of formulas are training times, see `NoiseSchedule`.
        t_min: the cleanest training time with noise: 0, or 1 for flow matching, whose t = 0 is the clean end itself.
        shift: timestep shift of flow matching, sigma <- shift sigma / (1 + (shift - 1) sigma).
        own: options of the grid's own, by name; see `Grid.options`.
    """

    offset: int
    closed: bool
    whole: bool
    low: float
    high: float
    t_max: int
    t_min: int = 0
    shift: float = 1.0
    own: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """A grid with a name: `place(options, n, **own)` returns timesteps, or sigma / alpha where `ratios`.

    Args:
        name, description: as listed.
        place: the formula.
        ratios: whether it returns sigma / alpha.
        affine: whether those are spaced by their size. On a flow schedule, where sigma / alpha ends at infinity, such
            a grid is about the flow's sigma instead.
        aliases: other names, as in AUTOMATIC1111, ComfyUI and Diffusers.
        options: what `grid_options` can set, with the default of each.
    """

    name: str
    description: str
    place: Callable[..., Array]
    ratios: bool = False
    affine: bool = False
    aliases: tuple[str, ...] = ()
    options: Mapping[str, float] = field(default_factory=dict)

    def levels(self, schedule: NoiseSchedule, n: int, options: GridOptions) -> Levels:
        """The `n` noise levels of this grid on a model's schedule.

        Raises:
            InputError: if the grid cannot place `n` distinct levels, or has no such option.
        """
        with np.errstate(all="ignore"):  # what overflows is no level, and refused below
            levels = self._place(schedule, n, options)
            distinct = len(levels) == n and bool(np.all(np.diff(levels.ratio) < 0))
            times = schedule.time(levels)
        if not distinct or not np.all((times >= 0) & (times <= schedule.t_max)):
            raise InputError(
                f"the grid {self.name!r} cannot place {n} distinct steps between t = {schedule.t_max} and 0; "
                "use fewer steps or another grid"
            )
        return levels

    def own_options(self, given: Mapping[str, Any]) -> dict[str, float]:
        """This grid's options, as given or else by default.

        Raises:
            InputError: naming the options there are, or what a value must be.
        """
        for name, value in given.items():
            if name not in self.options:
                known = f"it has {', '.join(self.options)}" if self.options else "it has none"
                raise InputError(f"the grid {self.name!r} has no option {name!r}; {known}")
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or (value <= 0 and name not in SIGNED):
                allowed = "a number" if name in SIGNED else "a number above 0"
                raise InputError(f"{name} of the grid {self.name!r} must be {allowed}, got {value!r}")
        return {**self.options, **given}

    def _place(self, schedule: NoiseSchedule, n: int, o: GridOptions) -> Levels:
        affine = self.affine and schedule.flow
        if affine:
            high = 1.0 if o.high >= schedule.ratio_range[1] else o.high / (1 + o.high)
            o = replace(o, low=o.low / (1 + o.low), high=high)
        values = np.asarray(self.place(o, n, **self.own_options(o.own)), float)
        if affine:
            levels = schedule.at(values * schedule.t_max)
        elif self.ratios:
            levels = schedule.at_lambda(-np.log(values))
        else:
            levels = schedule.at(values)
        if schedule.flow and o.shift != 1:
            sigma = o.shift * levels.sigma / (1 + (o.shift - 1) * levels.sigma)
            levels = schedule.at(sigma * schedule.t_max)
        return levels


SIGNED = frozenset({"mu"})
"""Options of grids that may be 0 or less."""
