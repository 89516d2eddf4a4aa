"""Loss weighting by noise level.

Each weighting is defined as a weight w(snr) of the squared error of x0, with snr = (alpha / sigma)^2, and converted to
the weight of the error of what the network predicts:

    eps error = snr x0 error,    v error = (snr + 1) x0 error    =>    w / snr,  w / (snr + 1),  w

(Salimans & Ho 2022, arXiv 2202.00512, section 4, for variance-preserving alpha and sigma).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sd_ext.errors import UnknownNameError
from sd_ext.training.objective.settings import PREDICTION_TYPES, WEIGHTS

LEAST_SNR, MOST_SNR = 1e-5, 1e5
"""Signal-to-noise ratios are clamped to this range, so that no weight is infinite where alpha or sigma is 0.

Stable Diffusion's schedule lies between 0.0047 and 1175, DDPM's between 4e-5 and 1e4.
"""


def loss_weight(kind: str, prediction_type: str, snr: Tensor, gamma: float | None = None, k: float = 1.0) -> Tensor:
    """The weight of each sample's squared error; finite for every snr from 0 to infinity.

    The weight of the error of x0 is

        none            such that the weight of the prediction's own error is 1
        min_snr         min(snr, gamma)                Hang et al. 2023, arXiv 2303.09556, eq. 8
        soft_min_snr    snr gamma / (snr + gamma)      Crowson et al. 2024, arXiv 2401.11605
        debiased        sqrt(snr)                      Yu et al. 2023, arXiv 2310.08442: 1 / sqrt(snr) on eps
        p2              snr / (k + snr)^gamma          Choi et al. 2022, arXiv 2204.00227: 1 / (k + snr)^gamma on eps

    Debiased and P2 are published for eps prediction; here the same weight of x0's error is used for the other
    predictions as well. (Some trainers use 1 / (snr + 1) for debiased v prediction, which is a different weighting.)

    Args:
        kind: a name in `WEIGHTS`.
        prediction_type: one of `PREDICTION_TYPES`.
        snr: (alpha / sigma)^2 of each sample, (b,).
        gamma: the limit of min_snr and soft_min_snr, or the exponent of p2; None for the customary 5, 5 and 1.
        k: the constant k of p2.

    Returns:
        (b,), the factor of the error of what the network predicts.

    Raises:
        UnknownNameError: `kind` or `prediction_type` is not known.
    """
    if kind not in WEIGHTS:
        raise UnknownNameError("loss weighting", kind, WEIGHTS)
    if prediction_type not in PREDICTION_TYPES:
        raise UnknownNameError("prediction type", prediction_type, PREDICTION_TYPES)
    if kind == "none":
        return torch.ones_like(snr)
    snr = snr.clamp(LEAST_SNR, MOST_SNR)
    on_x0 = _weight_on_x0(kind, snr, WEIGHTS[kind] if gamma is None else gamma, k)
    return on_x0 / {"epsilon": snr, "v_prediction": snr + 1, "sample": 1.0}[prediction_type]


def _weight_on_x0(kind: str, snr: Tensor, gamma: float | None, k: float) -> Tensor:
    if kind == "debiased" or gamma is None:
        return snr.sqrt()
    if kind == "min_snr":
        return snr.clamp(max=gamma)
    return snr * gamma / (snr + gamma) if kind == "soft_min_snr" else snr / (k + snr) ** gamma
