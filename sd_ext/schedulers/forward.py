"""The forward process on tensors: what training scripts and img2img ask of a scheduler."""

from __future__ import annotations

import torch

from .schedule import NoiseSchedule


def coefficients(
    schedule: NoiseSchedule, timesteps: torch.Tensor, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma at `timesteps`, on `like`'s device in float32 (float64 for float64), shaped to broadcast over it.

    Args:
        timesteps: `(batch,)` or `(1,)`, whole or fractional, on any device; interpolated as `NoiseSchedule.at` does.
    """
    timesteps = timesteps.reshape(-1).to(like.device)
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    alpha, sigma = (torch.as_tensor(v, dtype=dtype, device=like.device) for v in (schedule.alpha, schedule.sigma))
    if timesteps.is_floating_point():
        low = timesteps.floor().long()
        high, part = (low + 1).clamp(max=schedule.t_max), (timesteps - low).to(dtype)
        log_ratio = torch.lerp(torch.log(sigma / alpha)[low], torch.log(sigma / alpha)[high], part)
        power = 1.0 if schedule.flow else 2.0
        between = torch.sigmoid(-power * log_ratio) ** (1 / power)
        linear = torch.lerp(alpha[low], alpha[high], part)
        a = torch.where(part == 0, alpha[low], torch.where((alpha[high] == 0) | schedule.flow, linear, between))
        s = 1 - a if schedule.flow else torch.sqrt(1 - a**2)
        s = torch.where(part == 0, sigma[low], s)
    else:
        a, s = alpha[timesteps], sigma[timesteps]
    shape = (-1,) + (1,) * (like.dim() - 1)
    return a.reshape(shape), s.reshape(shape)


def add_noise(schedule: NoiseSchedule, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """alpha_t x0 + sigma_t noise."""
    alpha, sigma = coefficients(schedule, timesteps, x0)
    return (alpha * x0 + sigma * noise).to(x0.dtype)


def velocity(schedule: NoiseSchedule, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """alpha_t noise - sigma_t x0, the target of v-prediction (Salimans & Ho 2022, arXiv 2202.00512)."""
    alpha, sigma = coefficients(schedule, timesteps, x0)
    return (alpha * noise - sigma * x0).to(x0.dtype)
