"""The error of a prediction: one number for each sample."""

from __future__ import annotations

import torch
from torch import Tensor

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.training.objective.settings import ERRORS, HUBER_SCHEDULES


def error(
    kind: str, prediction: Tensor, wanted: Tensor, delta: float | Tensor = 0.1, mask: Tensor | None = None
) -> Tensor:
    """The mean error of each sample's prediction.

    With d = prediction - wanted, a pixel's error is

        l2          d^2
        l1          |d|
        huber       2 delta (sqrt(d^2 + delta^2) - delta)     like l2 below delta, like 2 delta |d| above (pseudo-Huber,
                                                              Charbonnier et al. 1997; twice, to have the scale of l2)
        smooth_l1   d^2 / (2 delta) for |d| < delta, else |d| - delta / 2     (Girshick 2015, arXiv 1504.08083, eq. 3)

    With a mask, the mean over pixels is weighted by it: the sum is divided by the sum of the weights, not by the number
    of pixels. So the scale of the loss, on which learning rate and gradient clipping depend, stays the same for masks
    that cover little, and scaling a mask changes nothing. A mask of zeros makes a sample's error 0.

    Args:
        kind: one of `ERRORS`.
        prediction: (b, c, h, w).
        wanted: the target, of the same shape.
        delta: where huber and smooth_l1 turn from square to linear: a number, or (b,) from `huber_delta`.
        mask: (b, 1, h, w), weights of 0 or more; None to weigh all pixels alike.

    Returns:
        (b,) float32.

    Raises:
        UnknownNameError: `kind` is not known.
        InputError: shapes differ, or the mask's shape does not fit.
    """
    if prediction.shape != wanted.shape:  # broadcasting would hide a mistake
        raise InputError(f"the prediction is {tuple(prediction.shape)} and its target {tuple(wanted.shape)}")
    pixels = _pixel_error(kind, prediction.float() - wanted.float(), delta)
    if mask is None:
        return pixels.flatten(1).mean(1)
    expected = (len(pixels), 1, *pixels.shape[2:])
    if tuple(mask.shape) != expected:
        raise InputError(f"a mask for {tuple(pixels.shape)} must be {expected}, not {tuple(mask.shape)}")
    weight = mask.to(pixels)
    total = (weight * pixels).mean(1).flatten(1).sum(1)
    return total / weight.flatten(1).sum(1).clamp_min(torch.finfo(pixels.dtype).tiny)


def _pixel_error(kind: str, d: Tensor, delta: float | Tensor) -> Tensor:
    if kind not in ERRORS:
        raise UnknownNameError("error", kind, ERRORS)
    if kind == "l2":
        return d.square()
    if kind == "l1":
        return d.abs()
    delta = torch.as_tensor(delta, dtype=d.dtype, device=d.device).reshape(-1, *[1] * (d.ndim - 1))
    if kind == "huber":  # 2 delta (sqrt(d^2 + delta^2) - delta), rewritten to avoid cancellation
        return 2 * delta * d.square() / ((d.square() + delta.square()).sqrt() + delta)
    return torch.where(d.abs() < delta, d.square() / (2 * delta), d.abs() - delta / 2)


def huber_delta(schedule: str, delta: float, t: Tensor, timesteps: int, snr: Tensor) -> Tensor:
    """The argument `delta` of `error` for each sample, by its noise level (Khrapov et al. 2024, arXiv 2403.16728).

        constant      delta
        exponential   delta^(t / timesteps)
        snr           delta + (1 - delta) / (1 + 1 / sqrt(snr))^2

    The last two fall from 1 without noise to `delta` at the highest noise level, where outliers are most common.

    Args:
        schedule: one of `HUBER_SCHEDULES`.
        delta: the value at the highest noise level, more than 0.
        t: the timestep of each sample, (b,).
        timesteps: number of timesteps of the noise schedule.
        snr: signal-to-noise ratio (alpha / sigma)^2 of each sample, (b,); 0 and infinity are allowed.

    Returns:
        (b,).

    Raises:
        UnknownNameError: `schedule` is not known.
        InputError: `delta` is not positive.
    """
    if schedule not in HUBER_SCHEDULES:
        raise UnknownNameError("huber schedule", schedule, HUBER_SCHEDULES)
    if not delta > 0:
        raise InputError(f"the huber delta is {delta}; it must be more than 0")
    if schedule == "constant":
        return torch.full_like(snr, delta)
    if schedule == "exponential":
        return delta ** (t.to(snr) / timesteps)
    return delta + (1 - delta) / (1 + snr.rsqrt()).square()
