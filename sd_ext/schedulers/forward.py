"""The forward process on tensors: what training scripts and img2img ask of a scheduler."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from .schedule import NoiseSchedule


@lru_cache(maxsize=16)
def tables(schedule: NoiseSchedule, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma at the training timesteps, `(T,)`, on a device: copied there once, not at every call."""
    with torch.inference_mode(False):  # also usable where gradients are wanted
        alpha, sigma = (torch.tensor(v, dtype=dtype, device=device) for v in (schedule.alpha, schedule.sigma))
    return alpha, sigma


def coefficients(
    schedule: NoiseSchedule, timesteps: torch.Tensor, like: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma at `timesteps`, on `like`'s device in float32 (float64 for float64), shaped to broadcast over it.

    Args:
        timesteps: `(batch,)` or `(1,)`, whole or fractional, on any device; interpolated as `NoiseSchedule.at` does.
    """
    timesteps = timesteps.reshape(-1).to(like.device)
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    alpha, sigma = tables(schedule, dtype, like.device)
    if timesteps.is_floating_point():
        low = timesteps.floor().long()
        high, part = (low + 1).clamp(max=schedule.t_max), (timesteps - low).to(dtype)
        log_ratio = torch.log(sigma / alpha)
        log_ratio = torch.lerp(log_ratio[low], log_ratio[high], part)
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


class ForwardProcess:
    """The part of the scheduler interface that is about the trained process and not about a run."""

    schedule: NoiseSchedule

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """alpha_t x0 + sigma_t noise, at any timesteps, also before set_timesteps.

        Args:
            original_samples: x0, `(batch, ...)`.
            noise: same shape.
            timesteps: `(batch,)` or `(1,)`, whole or fractional, within [0, T - 1].
        """
        return add_noise(self.schedule, original_samples, noise, timesteps)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """v = alpha_t noise - sigma_t x0, the target of v-prediction; arguments as for `add_noise`."""
        return velocity(self.schedule, sample, noise, timesteps)

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """alpha_t^2, `(T,)` float32."""
        return torch.tensor(self.schedule.alpha**2, dtype=torch.float32)

    @property
    def betas(self) -> torch.Tensor:
        """1 - alphas_cumprod[t] / alphas_cumprod[t - 1], `(T,)` float32."""
        squared = np.concatenate([[1.0], self.schedule.alpha**2])
        return torch.tensor(1 - squared[1:] / squared[:-1], dtype=torch.float32)

    @property
    def alphas(self) -> torch.Tensor:
        return 1 - self.betas
