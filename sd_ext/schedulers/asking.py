"""What a flow model's run is asked for by `set_timesteps`: a shift by resolution, and sigmas before it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

from ..errors import InputError
from .placement import Asked, chosen_grid, falling, spaces
from .processes.betas import ratios_of
from .processes.flow import Shift
from .processes.reading import ProcessOptions
from .schedule import Array


def ask(
    told: ProcessOptions,
    config: Mapping[str, Any],
    sigmas: Any,
    mu: float | None,
    say: Callable[[str], None],
    *,
    karras_on_ratio: bool = False,
) -> Asked | None:
    """What a run is asked for; None for models that are no flow.

    Args:
        told: the process.
        config: of the scheduler.
        sigmas, mu: as `set_timesteps` was given them.
        say: is told what has no effect.
        karras_on_ratio: see `ends`.

    Raises:
        InputError: a `mu` for another model, or none where the shift is made from it; sigmas that are none of a flow.
    """
    if not told.flows:
        if mu is not None:
            raise InputError(
                f"mu is for flow models that shift by resolution, and this config's process is {told.kind!r}"
            )
        return None
    if told.use_dynamic_shifting:
        _check_mu(mu, positive=told.time_shift_type == "linear")
    elif mu is not None:
        say(
            f"mu has no effect: the config shifts by {told.fixed_shift:g} whatever the resolution, since "
            "use_dynamic_shifting is off"
        )
    grid = chosen_grid(config)
    if sigmas is not None and grid is not None and not spaces(grid):
        say(f"the grid {grid!r} places the calls; of the sigmas given only their number counts")
    found = ends(told, config, karras_on_ratio and sigmas is None)
    if found is not None:
        _say_what_ends_leave_out(told, grid, sigmas, say)
    return Asked(
        Shift.of(told, mu),
        not told.use_dynamic_shifting,
        None if sigmas is None else flow_sigmas(sigmas),
        bool(told.use_flow_sigmas),
        mu if told.use_dynamic_shifting else None,
        found,
    )


def ends(told: ProcessOptions, config: Mapping[str, Any], karras_on_ratio: bool) -> tuple[float, float] | None:
    """The least and the largest sigma / (1 - sigma) between which a flow's grid spaces that in place of sigma, or None
    where sigma itself is spaced.

    Where `sigma_max` is above 1 it can be no sigma of a flow.

    Args:
        told: the process.
        config: of the scheduler.
        karras_on_ratio: whether the class spaces its karras flag so in any case; ends that are not given are those of
            the config's betas, as in Diffusers' UniPC.

    Raises:
        InputError: ends that are none.
    """
    grid = chosen_grid(config)
    if grid is None or not spaces(grid):
        return None
    by_flag = karras_on_ratio and config["grid"] is None and bool(config["use_karras_sigmas"])
    if not by_flag and (told.sigma_max is None or told.sigma_max <= 1):
        return None
    least, most = ratios_of(told)
    low, high = told.sigma_min or least, told.sigma_max or most
    if not 0 < low < high or not math.isfinite(high):
        raise InputError(f"sigma_min must be positive and below sigma_max, got {low:g} and {high:g}")
    return low, high


def _say_what_ends_leave_out(told: ProcessOptions, grid: str | None, sigmas: Any, say: Callable[[str], None]) -> None:
    without = []
    if told.use_dynamic_shifting or told.fixed_shift != 1:
        without.append("the shift has no effect")
    if told.shift_terminal:
        without.append("shift_terminal has no effect")
    if sigmas is not None:
        without.append("of the sigmas given only their number counts")
    if without:
        say(f"the grid {grid!r} goes from sigma_max to sigma_min in sigma / (1 - sigma): {' and '.join(without)}")


def _check_mu(mu: Any, positive: bool) -> None:
    number = isinstance(mu, Real) and not isinstance(mu, bool) and math.isfinite(mu)
    if not number or (positive and mu <= 0):
        wanted = "a positive number" if positive else "a number"
        raise InputError(
            f"with use_dynamic_shifting, set_timesteps needs mu (pipelines compute it), {wanted}, got {mu!r}"
        )


def flow_sigmas(values: Any) -> Array:
    """The caller's sigmas of a flow model, before the shift, `(calls,)`; a last 0 is the end and makes no call.

    Raises:
        InputError: not numbers, empty, not falling, or not above 0 and at most 1.
    """
    given = falling("sigmas", values)
    given = given[:-1] if given[-1] == 0 and len(given) > 1 else given
    if given[-1] <= 0 or given[0] > 1:
        raise InputError(f"a flow's sigmas must lie above 0 and at most at 1, got {given.tolist()}")
    return given
