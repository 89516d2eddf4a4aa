"""The forward process on tensors: what training scripts and image to image ask of a scheduler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch.compiler import is_compiling

from ..errors import InputError


class Trained(Protocol):
    """The trained noise schedule: x_t = alpha_t x0 + sigma_t eps.

    `alpha` and `sigma` are those of the training times 0, 1, 2, ..., at which the network is told `told_at_training`,
    or where that is None, the time itself; `flow` says whether alpha + sigma = 1 (flow matching) in place of
    alpha^2 sigma_data^2 + sigma^2 = 1.
    """

    @property
    def alpha(self) -> Sequence[float]: ...

    @property
    def sigma(self) -> Sequence[float]: ...

    @property
    def flow(self) -> bool: ...

    @property
    def sigma_data(self) -> float: ...

    @property
    def told_at_training(self) -> Sequence[float] | None: ...


def checked(schedule: Trained, timesteps: Any, like: torch.Tensor) -> torch.Tensor:
    """Timesteps as a tensor of one dimension. What a device or a compiled graph holds is not read.

    Args:
        timesteps: a tensor, a number, or a list of numbers.
        like: what they are for, `(batch, ...)`.

    Raises:
        InputError: no numbers, not one or as many as the batch has samples, or none that the model was trained at.
    """
    try:
        t = torch.as_tensor(timesteps).reshape(-1)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"timesteps must be numbers, got {timesteps!r}") from error
    if len(t) != 1 != len(like) != len(t):
        raise InputError(f"timesteps must be 1 or {len(like)} (the batch size), got {len(t)}")
    if is_compiling() or t.device.type != "cpu":
        return t
    told = range(len(schedule.alpha)) if schedule.told_at_training is None else schedule.told_at_training
    least, most = (float(f(told[0], told[-1])) for f in (min, max))
    off = 1e-6 * (most - least) if math.isfinite(most - least) else 0.0  # where float32 rounds what the network is told
    if not (len(t) and least - off <= float(t.min()) and float(t.max()) <= most + off):
        raise InputError(f"timesteps must lie within {least:g} and {most:g}, got {t.tolist()}")
    return t


def times(schedule: Trained, timesteps: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The training times at which the network is told `timesteps`: between two of them, in proportion."""
    if schedule.told_at_training is None:
        return timesteps
    told = torch.tensor([float(value) for value in schedule.told_at_training], dtype=torch.float64)
    told, t = told.to(timesteps.device, dtype), timesteps.to(dtype)
    if told[0] > told[-1]:
        told, t = -told, -t
    high = torch.searchsorted(told, t.contiguous()).clamp(1, len(told) - 1)
    below, above = told[high - 1], told[high]
    part = torch.where(torch.isfinite(below), (t - below) / (above - below), 1.0)
    return (high - 1 + part).clamp(0, len(told) - 1)


@lru_cache(maxsize=16)
def tables(schedule: Trained, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma at the training timesteps, `(T,)`, on a device: copied there once, not at every call."""
    with torch.inference_mode(False):  # also usable where gradients are wanted
        alpha, sigma = (torch.tensor(v, dtype=dtype, device=device) for v in (schedule.alpha, schedule.sigma))
    return alpha, sigma


def coefficients(schedule: Trained, timesteps: torch.Tensor, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma at `timesteps`, on `like`'s device in float32 (float64 for float64), shaped to broadcast over it.

    Args:
        schedule: the trained noise schedule.
        timesteps: what the network is told, `(batch,)` or `(1,)`, on any device. Between training times
            log(sigma / alpha) is interpolated; for flow matching, or beside one without signal, alpha is.
        like: what they shall be multiplied with, `(batch, ...)`.

    Raises:
        InputError: see `checked`.
    """
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    timesteps = times(schedule, checked(schedule, timesteps, like).to(like.device), dtype)
    alpha, sigma = tables(schedule, dtype, like.device)
    if timesteps.is_floating_point():
        low = timesteps.floor().long()
        high, part = (low + 1).clamp(max=len(alpha) - 1), (timesteps - low).to(dtype)
        log_ratio = torch.log(sigma / alpha)
        log_ratio = torch.lerp(log_ratio[low], log_ratio[high], part)
        data = schedule.sigma_data
        between = torch.sigmoid(2 * (math.log(data) - log_ratio)) ** 0.5 / data
        linear = torch.lerp(alpha[low], alpha[high], part)
        a = torch.where(part == 0, alpha[low], torch.where((alpha[high] == 0) | schedule.flow, linear, between))
        s = 1 - a if schedule.flow else torch.sqrt(1 - (data * a) ** 2)
        s = torch.where(part == 0, sigma[low], s)
    else:
        a, s = alpha[timesteps], sigma[timesteps]
    shape = (-1,) + (1,) * (like.dim() - 1)
    return a.reshape(shape), s.reshape(shape)


def add_noise(schedule: Trained, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """alpha_t x0 + sigma_t noise."""
    alpha, sigma = coefficients(schedule, timesteps, x0)
    return (alpha * x0 + sigma * noise).to(x0.dtype)


def velocity(schedule: Trained, x0: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
    """alpha_t noise - sigma_t x0, the target of v-prediction (Salimans & Ho 2022, arXiv 2202.00512), of data in units
    of their standard deviation.
    """
    alpha, sigma = coefficients(schedule, timesteps, x0)
    return (alpha * schedule.sigma_data * noise - sigma / schedule.sigma_data * x0).to(x0.dtype)


class ForwardProcess:
    """The part of the scheduler interface that is about the trained process and not about a run."""

    @property
    def _process(self) -> Trained:
        """The trained process; what its timesteps mean."""
        raise NotImplementedError

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """alpha_t x0 + sigma_t noise, at any timesteps, also before set_timesteps.

        Args:
            original_samples: x0, `(batch, ...)`.
            noise: same shape.
            timesteps: what the network is told, `(batch,)` or `(1,)`; whole or fractional.

        Raises:
            InputError: timesteps that are none of the model's, or not one or as many as there are samples.
        """
        return add_noise(self._process, original_samples, noise, timesteps)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """v = alpha_t noise - sigma_t x0, the target of v-prediction; arguments as for `add_noise`."""
        return velocity(self._process, sample, noise, timesteps)

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """alpha_t^2, `(T,)` float32."""
        return self._squares()[1:].float()

    @property
    def betas(self) -> torch.Tensor:
        """1 - alphas_cumprod[t] / alphas_cumprod[t - 1], `(T,)` float32."""
        squares = self._squares()
        return (1 - squares[1:] / squares[:-1]).float()

    @property
    def alphas(self) -> torch.Tensor:
        """1 - betas, `(T,)` float32."""
        return 1 - self.betas

    def _squares(self) -> torch.Tensor:
        """1, and alpha_t^2 (of data in units of their standard deviation) at every timestep, `(1 + T,)` float64."""
        trained = self._process
        return torch.tensor([1.0, *(a * trained.sigma_data for a in trained.alpha)], dtype=torch.float64) ** 2
