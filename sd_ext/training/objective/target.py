"""The prediction target: what the network predicts from x_t.

x_t = alpha x0 + sigma eps,    v = alpha eps - sigma x0,    snr = (alpha / sigma)^2
"""

from __future__ import annotations

from torch import Tensor

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.schedulers.schedule import LEAST_SIGNAL
from sd_ext.training.objective.settings import PREDICTION_TYPES


def target(prediction_type: str, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The prediction target: eps, x0, or v (Salimans & Ho 2022, arXiv 2202.00512, section 4).

    Args:
        prediction_type: one of `PREDICTION_TYPES`.
        x0, eps: latents and noise, (b, c, h, w).
        alpha, sigma: coefficients of signal and noise, of a shape that broadcasts, such as (b, 1, 1, 1).

    Returns:
        (b, c, h, w).

    Raises:
        UnknownNameError: `prediction_type` is not known.
    """
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "sample":
        return x0
    if prediction_type != "v_prediction":
        raise UnknownNameError("prediction type", prediction_type, PREDICTION_TYPES)
    return alpha * eps - sigma * x0


def check_terminal_snr(prediction_type: str, alpha: Tensor) -> None:
    """Refuse to predict eps at timesteps of pure noise (Lin et al. 2023, arXiv 2305.08891, section 3.2).

    At such timesteps x_t = eps, so the target equals the input: nothing is learned about the picture, and
    x0 = (x_t - sigma eps) / alpha would divide by 0.

    Args:
        prediction_type: one of `PREDICTION_TYPES`.
        alpha: signal coefficients of the timesteps that are trained, (n,).

    Raises:
        InputError: eps is predicted and some alpha is 0.
    """
    empty = int((alpha <= LEAST_SIGNAL).sum())
    if prediction_type == "epsilon" and empty:
        raise InputError(
            f"with zero terminal SNR, nothing of the picture is left at {empty} of the timesteps, and epsilon cannot "
            "be predicted there: train with prediction_type v_prediction or sample, or leave out the last timesteps"
        )
