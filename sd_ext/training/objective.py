"""What a diffusion model is asked to predict, and how much each noise level counts.

x_t = alpha x0 + sigma eps,    v = alpha eps - sigma x0,    snr = (alpha / sigma)^2
"""

from __future__ import annotations

import torch
from torch import Tensor


def target(prediction_type: str, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """eps, v (Salimans & Ho 2022, arXiv 2202.00512, section 4) or x0; shapes broadcast."""
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "sample":
        return x0
    return alpha * eps - sigma * x0


def min_snr_weight(prediction_type: str, snr: Tensor, gamma: float) -> Tensor:
    """The loss weight of each sample: min(snr, gamma) on the x0 error (Hang et al. 2023, arXiv 2303.09556, eq. 8).

    The x0 error is the eps error / snr and the v error / (snr + 1), hence the divisors. With zero terminal SNR the
    weight of eps is its limit, 1. `gamma` 0 is no weighting: 1 everywhere.
    """
    if not gamma:
        return torch.ones_like(snr)
    least = snr.clamp(max=gamma)
    if prediction_type == "epsilon":
        return torch.where(snr > 0, least / snr.clamp_min(1e-20), 1.0)
    return least if prediction_type == "sample" else least / (snr + 1)


def stratified_timesteps(count: int, timesteps: int, generator: torch.Generator) -> Tensor:
    """`count` timesteps, uniform each, one from every 1/count of the range: a batch's loss varies less.

    Kingma et al. 2021, arXiv 2107.00630, appendix I.1.
    """
    u = (torch.arange(count) + torch.rand(count, generator=generator)) / count
    return (u * timesteps).long().clamp_max(timesteps - 1)
