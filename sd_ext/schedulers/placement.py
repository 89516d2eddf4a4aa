"""From a scheduler's config, or from what the caller asked for, to the noise levels of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ..errors import InputError
from .grids import GridOptions, get_grid
from .schedule import ZERO, Levels, NoiseSchedule
from .travel import FLAGS


def grid_name(config: Mapping[str, Any]) -> str:
    """The grid a scheduler config asks for: `grid`, or one of Diffusers' flags, or `timestep_spacing`."""
    if config["grid"] is not None:
        return config["grid"]
    return next((grid for flag, grid in FLAGS.items() if config[flag]), config["timestep_spacing"])


def grid_levels(
    schedule: NoiseSchedule, config: Mapping[str, Any], n: int, end: Levels, *, closed: bool, whole: bool
) -> Levels:
    """`n` levels of the configured grid, and `end`.

    Where the grid's own last level is the end already, the grid of n + 1 levels is taken, so that no step has length
    zero. With `discard_penultimate_sigma` one more is placed and the last before the end left out.

    Args:
        schedule: the trained noise schedule.
        config: a scheduler's.
        n: network calls, or solver steps of samplers that make several calls a step.
        end: where the run ends, one level.
        closed, whole: how this sampler's "linspace" and "leading" are meant; see `GridOptions`.

    Raises:
        InputError: no such grid, or one that cannot place so many levels.
    """
    low, high = schedule.ratio_range
    t_max = schedule.t_max
    if config["lambda_min_clipped"] > -math.log(high):
        high = math.exp(-config["lambda_min_clipped"])
        t_max = int(schedule.at_lambda([config["lambda_min_clipped"]]).t[0])
    options = GridOptions(
        offset=config["steps_offset"],
        closed=closed and not schedule.flow,
        whole=whole and not schedule.flow,
        low=config["sigma_min"] or low,
        high=config["sigma_max"] or high,
        t_max=t_max,
        t_min=int(schedule.flow),
        shift=config["flow_shift"],
        own=_own_options(config),
    )
    name = grid_name(config)
    grid = get_grid("linspace" if schedule.flow and name in ("leading", "trailing") else name)
    placed = n + bool(config.get("discard_penultimate_sigma"))
    levels = grid.levels(schedule, placed, options)
    if _reaches(levels, end):
        levels = grid.levels(schedule, placed + 1, options)
    return levels[:n].then(end)


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
        InputError: not numbers, empty, not falling, or outside [0, T - 1].
    """
    values = falling("timesteps", timesteps)
    if values[0] > schedule.t_max or values[-1] < 0:
        raise InputError(f"timesteps must lie within 0 and {schedule.t_max}, got {values.tolist()}")
    return _with_end(schedule.at(values), end)


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
    return _with_end(schedule.at_lambda(-np.log(values)), end)


def from_there(first: Levels, rest: Levels) -> Levels:
    """A level that is above all of a run's others, and the rest of that run, its end at least. From the level of the
    end itself a run can only end clean.
    """
    levels = rest.after(first)
    if len(rest) == 1 and _reaches(first, rest):
        levels.t[-1:], levels.alpha[-1:], levels.sigma[-1:] = ZERO.t, ZERO.alpha, ZERO.sigma
    return levels


def _with_end(levels: Levels, end: Levels) -> Levels:
    # A run told to go down to the training's least noise can only end clean.
    return levels.then(ZERO if _reaches(levels, end) else end)


def _reaches(levels: Levels, end: Levels) -> bool:
    """Whether the last of `levels` is at `end` already, to rounding."""
    return bool(levels.ratio[-1] <= end.ratio[0] * (1 + 1e-9))


def falling(name: str, values: Any) -> np.ndarray:
    """The caller's numbers, `(n,)` in float64.

    Args:
        name: of the argument, for the message.
        values: a list, array or tensor.

    Raises:
        InputError: not numbers, none at all, not finite, or not falling.
    """
    try:
        array = np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values, dtype=float).reshape(-1)
    except (TypeError, ValueError) as error:
        raise InputError(f"{name} must be a list of numbers, got {values!r}") from error
    if len(array) == 0 or not np.isfinite(array).all():
        raise InputError(f"{name} must be a non-empty list of finite numbers, got {values!r}")
    if np.any(np.diff(array) >= 0):
        raise InputError(f"{name} must fall from call to call, got {array.tolist()}")
    return array
