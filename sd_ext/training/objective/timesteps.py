"""Which noise levels a step trains."""

from __future__ import annotations

import torch
from torch import Tensor

from sd_ext.errors import InputError


def check_range(timesteps: int, first: int, last: int | None) -> None:
    """Raise InputError unless 0 <= first < last <= timesteps; None for all."""
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
    """`count` timesteps, one from every 1/count of the range, in random order: a step's loss varies less.

    Kingma et al. 2021, arXiv 2107.00630, appendix I.1. Call it once for all samples of an optimizer step. Each
    timestep by itself is independent of `count`: with power 1 uniform, else x = (t - first) / (last - first) has the
    density x^(1/power - 1) / power. The order is random because samples of a step may be sorted, by size for instance.

    Args:
        count: samples in the step.
        timesteps: of the noise schedule.
        generator: of the step.
        first: the smallest timestep drawn.
        last: one more than the largest; None for `timesteps`.
        power: more than 1 prefers early timesteps (little noise), less than 1 late ones.

    Returns:
        int64 (count,)

    Raises:
        InputError: the range is empty or reaches outside, or `power` is not positive.
    """
    check_range(timesteps, first, last)
    if not power > 0:
        raise InputError(f"the power of the timesteps' bias is {power}; it must be more than 0")
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    u = u[torch.randperm(count, generator=generator)].double() ** power
    end = timesteps if last is None else last
    return (first + u * (end - first)).long().clamp_max(end - 1)
