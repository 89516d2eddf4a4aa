"""Draws the timesteps of a training step."""

from __future__ import annotations

import torch
from torch import Tensor

from sd_ext.errors import InputError


def check_range(timesteps: int, first: int, last: int | None) -> None:
    """Raise InputError unless 0 <= first < last <= timesteps; `last` None means `timesteps`."""
    end = timesteps if last is None else last
    if not 0 <= first < end <= timesteps:
        raise InputError(
            f"timesteps are drawn from {first} up to, not including, {end}; that must be a range within 0..{timesteps}"
        )


def stratified_timesteps(
    count: int,
    timesteps: int,
    generator: torch.Generator,
    first: int = 0,
    last: int | None = None,
    power: float = 1.0,
) -> Tensor:
    """Draw `count` timesteps, one from each of `count` equal parts of the range, in random order.

    The loss of a step then varies less than with independent timesteps (Kingma et al. 2021, arXiv 2107.00630, appendix
    I.1). Call it once for all samples of an optimizer step. The distribution of each single timestep does not depend
    on `count`: it is uniform with power 1; else x = (t - first) / (last - first) has the density
    x^(1/power - 1) / power. The order is random since the samples of a step may be sorted, for example by size.

    Args:
        count: number of samples in the step.
        timesteps: number of timesteps of the noise schedule.
        generator: the step's generator.
        first: the smallest timestep to draw.
        last: one more than the largest; None for `timesteps`.
        power: more than 1 prefers early timesteps (little noise), less than 1 late ones.

    Returns:
        (count,) int64.

    Raises:
        InputError: the range is empty or reaches outside the schedule, or `power` is not positive.
    """
    check_range(timesteps, first, last)
    if not power > 0:
        raise InputError(f"the power of the timesteps' bias is {power}; it must be more than 0")
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    u = u[torch.randperm(count, generator=generator)].double() ** power
    end = timesteps if last is None else last
    return (first + u * (end - first)).long().clamp_max(end - 1)
