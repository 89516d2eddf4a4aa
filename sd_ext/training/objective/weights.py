"""How much each noise level counts.

Every weighting is a weight w(snr) on the squared error of x0, turned once into the weight of what the network predicts:

    eps error = snr x0 error,    v error = (snr + 1) x0 error    =>    w / snr,  w / (snr + 1),  w

(Salimans & Ho 2022, arXiv 2202.00512, section 4, for variance-preserving alpha and sigma).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sd_ext.errors import UnknownNameError
from sd_ext.training.objective.settings import PREDICTION_TYPES, WEIGHTS

LEAST_SNR, MOST_SNR = 1e-5, 1e5
"""Weights are those of the nearest snr within, so that none is infinite where alpha or sigma is 0.

Stable Diffusion's schedule lies between 0.0047 and 1175, DDPM's between 4e-5 and 1e4.
"""


def loss_weight(kind: str, prediction_type: str, snr: Tensor, gamma: float | None = None, k: float = 1.0) -> Tensor:
    """The weight of each sample's squared error, finite for every snr from 0 to infinity.

    On the error of x0 it is, for the kinds

        none            what makes it 1 on the prediction's own error, whatever that is
        min_snr         min(snr, gamma)                Hang et al. 2023, arXiv 2303.09556, eq. 8
        soft_min_snr    snr gamma / (snr + gamma)      Crowson et al. 2024, arXiv 2401.11605
        debiased        sqrt(snr)                      Yu et al. 2023, arXiv 2310.08442: 1 / sqrt(snr) on eps
        p2              snr / (k + snr)^gamma          Choi et al. 2022, arXiv 2204.00227: 1 / (k + snr)^gamma on eps

    Debiased and P2 are published for eps; the same weight on x0, and so on v, follows (1 / (snr + 1), as some trainers
    have it for debiased v, is another weighting).

    Args:
        kind: of `WEIGHTS`.
        prediction_type: of `PREDICTION_TYPES`.
        snr: (alpha / sigma)^2 of each sample, (b,).
        gamma: where min-SNR cuts, or P2's exponent; None for the customary 5 and 1.
        k: P2's.

    Returns:
        (b,)

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
