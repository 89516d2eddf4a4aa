"""What a network predicts, as linear maps, and the elementwise hook on x0.

Every prediction type is linear in (x, m), m the network's output: p = cx x + cm m for p = x0 or eps. Clipping and
dynamic thresholding act on the x0 prediction before a row is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from ..errors import InputError

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction", "flow_prediction")

Basis = Literal["x0", "eps"]
"""What the predictions that a table weighs are: of the picture, or of the noise."""

Hook = Callable[[torch.Tensor], torch.Tensor]
"""What is done to a prediction of x0, `(batch, ...)`, before it is used."""


def linear_map(prediction_type: str, basis: Basis, alpha: float, sigma: float) -> tuple[float, float]:
    """(cx, cm) with p = cx x + cm m, for x = alpha x0 + sigma eps.

    epsilon: m = eps. sample: m = x0. v_prediction: m = alpha eps - sigma x0 (Salimans & Ho 2022, arXiv 2202.00512).
    flow_prediction: m = eps - x0 (arXiv 2209.03003).

    Args:
        prediction_type: what m is, one of `PREDICTION_TYPES`.
        basis: what p shall be, "x0" or "eps".
        alpha, sigma: the level of x.

    Returns:
        The weights of x and of m.

    Raises:
        InputError: another prediction type.
    """
    if prediction_type == "sample":
        x0, eps = (0.0, 1.0), (1 / sigma, -alpha / sigma)
    elif prediction_type == "epsilon":
        x0, eps = (1 / alpha, -sigma / alpha), (0.0, 1.0)
    elif prediction_type == "v_prediction":
        norm = alpha**2 + sigma**2
        x0, eps = (alpha / norm, -sigma / norm), (sigma / norm, alpha / norm)
    elif prediction_type == "flow_prediction":
        norm = alpha + sigma
        x0, eps = (1 / norm, -sigma / norm), (1 / norm, alpha / norm)
    else:
        raise InputError(f"prediction_type must be one of {PREDICTION_TYPES}, got {prediction_type!r}")
    return x0 if basis == "x0" else eps


def clip_hook(limit: float) -> Hook:
    """x0 clipped to [-limit, limit]."""
    return lambda x0: x0.clamp(-limit, limit)


def threshold_hook(ratio: float, max_value: float) -> Hook:
    """Dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487, section 2.3).

    Each sample is clipped to +-s and divided by s, s the `ratio` quantile of its |x0|, held within [1, max_value].
    """

    def hook(x0: torch.Tensor) -> torch.Tensor:
        flat = x0.flatten(1).abs().float()
        s = torch.quantile(flat, ratio, dim=1).clamp(min=1.0, max=max(1.0, max_value))
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
