"""Guidance that changes from call to call, as a table of two fields.

A pipeline mixes with one strength: p = u + g (c - u), where u is the prediction without the prompt and c the one with
it. Of p and c any other strength can be had: f p + (1 - f) c is the mixture with 1 + f (g - 1) in the place of g, so
that f = 0 is no guidance, f = 1 the pipeline's, and f = 2 twice as much. A table is linear in its predictions, each of
which can therefore have a strength of its own, in the call that made it and in later ones that remember it.

Shapes over the noise: an interval (Kynkäänniemi et al. 2024, arXiv 2404.07724); linear and cosine, which grow from
nothing to twice the pipeline's and are the pipeline's on average over the timesteps (Wang et al. 2024, arXiv
2404.13040).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..errors import InputError
from .schedule import Array, Levels, NoiseSchedule
from .table import P0, Table

Piece = tuple[float, float | None, float]
"""(low, high, factor): the factor where low < sigma / alpha <= high; a high of None is no bound."""

GuidanceSchedule = str | Sequence[Piece]
"""What the option `guidance_schedule` takes; see `factors`."""

SDXL_INTERVAL = (0.28, 5.42)
"""The interval that the paper on them gives for Stable Diffusion XL, in sigma / alpha."""

SHAPES = "'linear', 'cosine', 'interval', 'interval LOW HIGH', or a list of [low, high, factor]"


def factors(schedule: GuidanceSchedule, levels: Levels, process: NoiseSchedule) -> Array:
    """The factor f of each call.

    Args:
        schedule: "linear" or "cosine"; "interval LOW HIGH", guidance where LOW < sigma / alpha <= HIGH and none
            elsewhere, "interval" alone with the bounds of `SDXL_INTERVAL`; or pieces, the first that holds a call's
            sigma / alpha giving its factor, and 1 elsewhere.
        levels: of the calls, and the end.
        process: that the model was trained on; "linear" and "cosine" go by its training times.

    Returns:
        `(calls,)`.

    Raises:
        InputError: not one of these.
    """
    if schedule in ("linear", "cosine"):
        share = process.time(levels[:-1]) / len(process.alpha)
        return 2 * (1 - share) if schedule == "linear" else 1 + np.cos(np.pi * share)
    ratio = levels.ratio[:-1]
    found = np.ones(len(ratio))
    for low, high, factor in reversed(_pieces(schedule)):
        found[(ratio > low) & (ratio <= (np.inf if high is None else high))] = factor
    return found


def _pieces(schedule: GuidanceSchedule) -> list[Piece]:
    if not isinstance(schedule, str):
        pieces = [(low, high, factor) for low, high, factor in schedule]
    else:
        name, *bounds = schedule.split()
        try:
            low, high = map(float, bounds) if bounds else SDXL_INTERVAL
        except ValueError:
            name, low, high = "", 0.0, 1.0
        if name != "interval":
            raise InputError(f"guidance_schedule must be {SHAPES}, got {schedule!r}")
        pieces = [(low, high, 1.0), (0.0, None, 0.0)]
    for low, high, _ in pieces:
        if not 0 <= low < (np.inf if high is None else high):
            raise InputError(f"guidance_schedule: bounds in sigma / alpha must be 0 <= low < high, got {low}, {high}")
    return pieces


def check(schedule: GuidanceSchedule, config: Any) -> None:
    """See at once that a schedule can be read, and that a scheduler of this config can have one.

    Raises:
        InputError: it cannot.
    """
    if not isinstance(schedule, str) or schedule not in ("linear", "cosine"):
        _pieces(schedule)
    for name in ("thresholding", "clip_sample"):
        if config.get(name):
            raise InputError(f"guidance_schedule mixes predictions anew, which {name} does not allow: set it to False")


def reweighed(table: Table, factors: Array) -> Table:
    """The table of two fields, guided and conditional, that does what this one would do on predictions mixed anew.

    Args:
        table: of one field.
        factors: f of each of its calls, `(calls,)`.

    Returns:
        The table itself where every factor is 1.

    Raises:
        InputError: a table of two fields, which has its own use for the halves.
    """
    if table.fields > 1:
        raise InputError("a sampler that weighs the halves of guidance by itself takes no guidance_schedule")
    if np.all(factors == 1):
        return table
    past = np.arange(table.calls)[:, None] - np.arange(table.history)
    of_call = factors[past.clip(0)][:, None]  # of the call that made each prediction
    weights = table.rows[:, :, P0:-1]
    rows = np.concatenate(
        [table.rows[:, :, :P0], weights * of_call, weights * (1 - of_call), table.rows[:, :, -1:]], axis=2
    )
    return replace(table, rows=rows, fields=2, second="conditional")
