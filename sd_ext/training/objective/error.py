"""The error of a prediction: one number for each sample."""

from __future__ import annotations

import torch
from torch import Tensor

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.training.objective.settings import ERRORS, HUBER_SCHEDULES


def error(
    kind: str, prediction: Tensor, wanted: Tensor, delta: float | Tensor = 0.1, mask: Tensor | None = None
) -> Tensor:
    """Mean error of each sample, in float32: (b, ...) twice to (b,).

    With d = prediction - wanted, a pixel's error is

        l2          d^2
        l1          |d|
        huber       2 delta (sqrt(d^2 + delta^2) - delta)     like l2 below delta, like 2 delta |d| above (pseudo-Huber,
                                                              Charbonnier et al. 1997; twice, to have the scale of l2)
        smooth_l1   d^2 / (2 delta) for |d| < delta, else |d| - delta / 2     (Girshick 2015, arXiv 1504.08083, eq. 3)

    A mask (b, 1, h, w) of weights, 0 or more, makes it a weighted mean: divided by the weights' sum, not by the number
    of pixels. So the loss keeps its scale, and with it the learning rate and the gradient's clipping, when a sample's
    mask covers little; scaling a mask changes nothing. A mask of zeros makes a sample's error 0.

    Args:
        kind: of `ERRORS`.
        prediction: (b, c, h, w).
        wanted: as `prediction`.
        delta: of huber and smooth_l1: a number, or (b,) from `huber_delta`.
        mask: (b, 1, h, w).

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
    if kind == "huber":  # 2 delta (sqrt(d^2 + delta^2) - delta), without the difference of nearly equal numbers
        return 2 * delta * d.square() / ((d.square() + delta.square()).sqrt() + delta)
    return torch.where(d.abs() < delta, d.square() / (2 * delta), d.abs() - delta / 2)


def huber_delta(schedule: str, delta: float, t: Tensor, timesteps: int, snr: Tensor) -> Tensor:
    """Delta of each sample, (b,), for `error`.

    constant: delta. exponential: delta^(t / timesteps). snr: delta + (1 - delta) / (1 + 1 / sqrt(snr))^2. The last two
    fall from 1 without noise to delta at the noisiest, where outliers are commonest (Khrapov et al. 2024, arXiv
    2403.16728).

    Args:
        schedule: of `HUBER_SCHEDULES`.
        delta: more than 0.
        t: timesteps (b,).
        timesteps: how many there are.
        snr: (b,); 0 and infinity are allowed.
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
