"""What a network predicts, as linear maps, and the elementwise hook on x0.

Every prediction is linear in (x, m), m the network's output: p = cx x + cm m for p = x0 or eps. Clipping and
dynamic thresholding act on the x0 prediction before a row is applied.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch

from ..errors import InputError

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")

Basis = Literal["x0", "eps"]
"""What the predictions that a table weighs are: of the picture, or of the noise."""

Hook = Callable[[torch.Tensor], torch.Tensor]
"""What is done to a prediction of x0, `(batch, ...)`, before it is used."""


class Prediction(NamedTuple):
    """What a network's output m is.

    Args:
        kind: one of `PREDICTION_TYPES`, or "consistency".
        sign: -1 where it is that with its sign turned.
        sigma_data: standard deviation of the data in whose units it is (v_prediction and consistency).
        sigma_min: sigma / alpha at which a consistency model's x0 is x itself.
    """

    kind: str = "epsilon"
    sign: float = 1.0
    sigma_data: float = 1.0
    sigma_min: float = 0.0


def linear_map(prediction: Prediction | str, basis: Basis, alpha: float, sigma: float) -> tuple[float, float]:
    """(cx, cm) with p = cx x + cm m, for x = alpha x0 + sigma eps.

    epsilon: m = eps. sample: m = x0. v_prediction: m = alpha eps - sigma x0 (Salimans & Ho 2022, arXiv 2202.00512); of
    data in units of d, m = alpha d eps - sigma x0 / d, which is EDM's F for alpha^2 d^2 + sigma^2 = 1 (Karras et al.
    2022, arXiv 2206.00364, eq. 7). flow_prediction: m = eps - x0 (arXiv 2209.03003). consistency: x0 = c_skip x + c_out
    m of x / alpha, with c_skip = 1 at sigma_min (Song et al. 2023, arXiv 2303.01469, appendix C). Products and square
    roots are rounded alike everywhere, powers are not: so runners in other languages have the same numbers to the bit.

    Args:
        prediction: what m is; its kind alone will do.
        basis: what p shall be, "x0" or "eps".
        alpha, sigma: the level of x.

    Returns:
        The weights of x and of m.

    Raises:
        InputError: another kind.
    """
    kind, sign, data, least = prediction if isinstance(prediction, Prediction) else Prediction(prediction)
    if kind == "sample":
        x0, eps = (0.0, 1.0), (1 / sigma, -alpha / sigma)
    elif kind == "epsilon":
        x0, eps = (1 / alpha, -sigma / alpha), (0.0, 1.0)
    elif kind == "v_prediction":
        norm = alpha * data * (alpha * data) + sigma * sigma
        x0, eps = (alpha * (data * data) / norm, -sigma * data / norm), (sigma / norm, alpha * data / norm)
    elif kind == "flow_prediction":
        norm = alpha + sigma
        x0, eps = (1 / norm, -sigma / norm), (1 / norm, alpha / norm)
    elif kind == "consistency":
        above = sigma / alpha - least
        skip = data * data / (above * above + data * data) / alpha
        out = above * data / math.sqrt(sigma / alpha * (sigma / alpha) + data * data)
        x0, eps = (skip, out), ((1 - alpha * skip) / sigma, -alpha * out / sigma)
    else:
        raise InputError(f"prediction_type must be one of {PREDICTION_TYPES}, got {kind!r}")
    cx, cm = x0 if basis == "x0" else eps
    return cx, sign * cm


def clip_hook(limit: float) -> Hook:
    """x0 clipped to [-limit, limit]."""
    return lambda x0: x0.clamp(-limit, limit)


def threshold_hook(ratio: float, max_value: float) -> Hook:
    """Dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, section 2.3).

    Each sample is clipped to +-s and divided by s, s the `ratio` quantile of its |x0|, held within [1, max_value],
    and max_value where that is below 1.
    """

    def hook(x0: torch.Tensor) -> torch.Tensor:
        flat = x0.flatten(1).abs().float()
        s = torch.quantile(flat, ratio, dim=1).clamp(min=1.0, max=max_value)
        s = s.to(x0.dtype).reshape(-1, *[1] * (x0.dim() - 1))
        return torch.clamp(x0, -s, s) / s

    return hook


def hook_from_config(config: Mapping[str, Any]) -> Hook | None:
    """The hook that `thresholding` or `clip_sample` of a scheduler config asks for, or None."""
    if config.get("thresholding"):
        return threshold_hook(config.get("dynamic_thresholding_ratio", 0.995), config.get("sample_max_value", 1.0))
    if config.get("clip_sample"):
        return clip_hook(config.get("clip_sample_range", 1.0))
    return None
