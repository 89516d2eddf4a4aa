"""From a scheduler's config, or from what the caller asked for, to the noise levels of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from .grids import GridOptions, get_grid
from .grids.by_ratio import beta_ratio, exponential, karras
from .processes.flow import Flow, Shift, own_sigmas, resampled
from .schedule import ZERO, Array, Levels, NoiseSchedule
from .travel import FLAGS

SPACINGS = {"karras": karras, "exponential": exponential, "beta_sigmas": beta_ratio}
"""Grids that on a flow schedule space its own sigmas anew between their first and their last, as Diffusers' flags
do."""


def spaces(grid: str) -> bool:
    """Whether a grid spaces a flow's sigmas anew, and does not place its own."""
    return get_grid(grid).name in SPACINGS


@dataclass(frozen=True)
class Asked:
    """What `set_timesteps` was told of a run of a flow model.

    Args:
        shift: where its sigmas are moved to.
        fixed: whether that is by the config and not by resolution.
        sigmas: of each call, before the shift, `(calls,)`; None to place them.
        to_zero: see `processes.flow.own_sigmas`.
        mu: what a shift by resolution was made from.
        ends: the least and the largest sigma / (1 - sigma) between which a grid spaces that in place of sigma; None
            where sigma itself is spaced.
    """

    shift: Shift
    fixed: bool = True
    sigmas: Array | None = None
    to_zero: bool = False
    mu: float | None = None
    ends: tuple[float, float] | None = None


def chosen_grid(config: Mapping[str, Any]) -> str | None:
    """The grid a scheduler config names: by `grid`, or by one of Diffusers' flags."""
    if config["grid"] is not None:
        return config["grid"]
    return next((grid for flag, grid in FLAGS.items() if config[flag]), None)


def grid_name(config: Mapping[str, Any]) -> str:
    """The grid a scheduler config asks for: one that it names, or its `timestep_spacing`."""
    return chosen_grid(config) or config["timestep_spacing"]


IDLE = 1e-6
"""Length, in lambda, of a last step that Diffusers makes of length zero: nothing divides by 0, and nothing changes."""


def grid_levels(
    schedule: NoiseSchedule,
    config: Mapping[str, Any],
    n: int,
    end: Levels,
    *,
    closed: bool,
    whole: bool,
    asked: Asked | None = None,
) -> Levels:
    """`n` levels of the configured grid, and `end`. Where the config names none, processes have steps of their own, or
    follow its `timestep_spacing`.

    Where the grid's own last level is the end already, the grid of n + 1 levels is taken, so that no step has length
    zero. But on a grid that Diffusers' options name the timesteps are Diffusers', and the last call changes nothing;
    and a run through all trained timesteps ends clean, as one does whose calls go below `end`. With
    `discard_penultimate_sigma` one more is placed and the last before the end left out.

    Args:
        schedule: the process.
        config: a scheduler's.
        n: network calls, or solver steps of samplers that make several calls a step.
        end: where the run ends, one level.
        closed, whole: how this sampler's "linspace" and "leading" are meant; see `GridOptions`.
        asked: what the run was told, for flow models.

    Raises:
        InputError: no such grid, or one that cannot place so many levels.
    """
    placed = n + bool(config.get("discard_penultimate_sigma"))
    if isinstance(schedule, Flow):
        assert asked is not None
        return with_end(schedule, _flow_levels(schedule, config, placed, end, asked)[:n], end)
    if chosen_grid(config) is None and (times := schedule.own_times(placed)) is not None:
        levels = schedule.at(times)
        if _reaches(levels, end) and (more := schedule.own_times(placed + 1)) is not None:
            levels = schedule.at(more)
        return with_end(schedule, levels[:n], end)
    grid, options = get_grid(grid_name(config)), _options(schedule, config, closed, whole)
    levels = grid.levels(schedule, placed, options)
    if _reaches(levels, end):
        if config["grid"] is None and end.sigma[0]:
            return with_end(schedule, levels[:n], end)
        if placed > schedule.t_max:
            return levels[:n].then(ZERO)
        levels = grid.levels(schedule, placed + 1, options)
    return with_end(schedule, levels[:n], end)


def _placed(schedule: NoiseSchedule, config: Mapping[str, Any], n: int, end: Levels, options: GridOptions) -> Levels:
    grid = get_grid(grid_name(config))
    levels = grid.levels(schedule, n, options)
    return grid.levels(schedule, n + 1, options) if _reaches(levels, end) else levels


def _options(schedule: NoiseSchedule, config: Mapping[str, Any], closed: bool, whole: bool) -> GridOptions:
    low, high = schedule.ratio_range
    t_max = schedule.t_max
    if config["lambda_min_clipped"] > -math.log(high):
        high = math.exp(-config["lambda_min_clipped"])
        t_max = int(schedule.time(schedule.at_lambda([config["lambda_min_clipped"]]))[0])
    return GridOptions(
        offset=config["steps_offset"],
        closed=closed,
        whole=whole,
        low=config["sigma_min"] or low,
        high=config["sigma_max"] or high,
        t_max=t_max,
        t_min=schedule.t_min,
        own=_own_options(config),
    )


def _flow_levels(flow: Flow, config: Mapping[str, Any], n: int, end: Levels, asked: Asked) -> Levels:
    """`n` levels of a flow model: those of the sigmas asked for or of its own ones, or of the grid that is named."""
    name, shift = chosen_grid(config), asked.shift
    spacing = SPACINGS.get(get_grid(name).name) if name is not None else None
    if name is not None and spacing is None:
        options = replace(_options(flow, config, closed=False, whole=False), shift=shift.factor)
        levels = _placed(flow, config, n, end, options)
        return levels if shift.terminal is None else flow.at_sigma(shift.stretched(levels.sigma[:n]))
    if spacing is not None and asked.ends is not None:
        own = get_grid(name or "").own_options(_own_options(config))
        return flow.at_lambda(-np.log(spacing(*asked.ends, n, **own)))
    if asked.sigmas is not None:
        sigmas = resampled(asked.sigmas, n)
    else:
        sigmas = own_sigmas(n, flow.t_max, shift.factor, to_zero=asked.to_zero, fixed=asked.fixed)
    sigmas = shift.stretched(shift.moved(sigmas))
    if spacing is not None:
        low, high = config["sigma_min"] or float(sigmas[-1]), config["sigma_max"] or float(sigmas[0])
        sigmas = spacing(low, high, n, **get_grid(name or "").own_options(_own_options(config)))
    if not np.all(np.diff(sigmas) < 0) or not 0 < sigmas[-1] <= sigmas[0] <= 1:
        raise InputError(
            f"a shift of {shift.factor:g} and shift_terminal {shift.terminal} leave no {n} sigmas apart between 1 and 0"
        )
    return flow.at_sigma(sigmas)


def _own_options(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config's `grid_options`: options of the grid's own, by name."""
    options = config.get("grid_options") or {}
    if not isinstance(options, Mapping):
        raise InputError(f"grid_options must be a mapping such as {{'rho': 7.0}}, got {options!r}")
    return options


def check_grid_options(config: Mapping[str, Any]) -> None:
    """See at once that the configured grid exists and takes the config's `grid_options`.

    Raises:
        InputError: no such grid, no such option, or a value it cannot take.
    """
    get_grid(grid_name(config)).own_options(_own_options(config))


def from_timesteps(schedule: NoiseSchedule, timesteps: Any, end: Levels) -> Levels:
    """Levels at the caller's timesteps, and the end.

    Raises:
        InputError: not numbers, empty, not falling, or outside what the network was trained to be told.
    """
    told = schedule.told_at_training
    values = falling("timesteps", timesteps, rising=told is not None and bool(told[0] > told[-1]))
    least, most = told_range(schedule)
    if not least <= values.min() <= values.max() <= most:
        raise InputError(f"timesteps must lie within {least:g} and {most:g}, got {values.tolist()}")
    return with_end(schedule, schedule.at_told(values), end)


def from_sigmas(schedule: NoiseSchedule, sigmas: Any, end: Levels) -> Levels:
    """Levels at the caller's sigma / alpha, and the end; a last 0 is the clean end itself.

    Raises:
        InputError: not numbers, empty, not falling, or not positive.
    """
    values = falling("sigmas", sigmas)
    if values[-1] == 0 and len(values) > 1:
        values, end = values[:-1], ZERO
    if values[-1] <= 0:
        raise InputError(f"sigmas must be positive, save for a last 0, got {values.tolist()}")
    return with_end(schedule, schedule.at_lambda(-np.log(values)), end)


def from_there(first: Levels, rest: Levels) -> Levels:
    """A level that is above all of a run's others, and the rest of that run, its end at least. From the level of the
    end itself a run can only end clean.
    """
    levels = rest.after(first)
    if len(rest) == 1 and _reaches(first, rest):
        levels.t[-1:], levels.alpha[-1:], levels.sigma[-1:] = ZERO.t, ZERO.alpha, ZERO.sigma
    return levels


def told_range(schedule: NoiseSchedule) -> tuple[float, float]:
    """The least and the largest timestep that the network was trained to be told."""
    trained = schedule.trained
    told = trained.told(np.array([0.0, trained.t_max]), trained.ratio_at_ends)
    return float(min(told)), float(max(told))


def with_end(schedule: NoiseSchedule, levels: Levels, end: Levels) -> Levels:
    """Levels of a run, and its end. Where the last one is there already, the last call changes nothing, as in
    Diffusers; where it is below, the run ends clean: its last call may not add noise.
    """
    if not _reaches(levels, end):
        return levels.then(end)
    if levels.ratio[-1] < end.ratio[0] * (1 - 1e-9):
        return levels.then(ZERO)
    return levels.then(Levels(end.t, end.alpha, end.sigma * math.exp(-IDLE)))


def _reaches(levels: Levels, end: Levels) -> bool:
    """Whether the last of `levels` is at `end` already, to rounding."""
    return bool(levels.ratio[-1] <= end.ratio[0] * (1 + 1e-9))


def falling(name: str, values: Any, rising: bool = False) -> np.ndarray:
    """The caller's numbers, `(n,)` in float64.

    Args:
        name: of the argument, for the message.
        values: a list, array or tensor.
        rising: whether they must rise instead.

    Raises:
        InputError: not numbers, none at all, not finite, or not falling.
    """
    try:
        array = np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values, dtype=float).reshape(-1)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be a list of numbers, got {values!r}") from error
    if len(array) == 0 or not np.isfinite(array).all():
        raise InputError(f"{name} must be a non-empty list of finite numbers, got {values!r}")
    if np.any(np.diff(array) * (-1 if rising else 1) >= 0):
        way = "rise" if rising else "fall"
        raise InputError(f"{name} must {way} from call to call, got {array.tolist()}")
    return array
