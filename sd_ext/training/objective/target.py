"""What the network predicts.

x_t = alpha x0 + sigma eps,    v = alpha eps - sigma x0,    snr = (alpha / sigma)^2
"""

from __future__ import annotations

from torch import Tensor

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.schedulers.schedule import LEAST_SIGNAL
from sd_ext.training.objective.settings import PREDICTION_TYPES


def target(prediction_type: str, x0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """eps, v (Salimans & Ho 2022, arXiv 2202.00512, section 4) or x0; shapes broadcast."""
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "sample":
        return x0
    if prediction_type != "v_prediction":
        raise UnknownNameError("prediction type", prediction_type, PREDICTION_TYPES)
    return alpha * eps - sigma * x0


def check_terminal_snr(prediction_type: str, alpha: Tensor) -> None:
    """Refuse to predict eps where x_t is nothing but eps (Lin et al. 2023, arXiv 2305.08891, section 3.2).

    There the target is the input: nothing is learned about the picture, and x0 = (x_t - sigma eps) / alpha is NaN.

    Args:
        prediction_type: of `PREDICTION_TYPES`.
        alpha: signal coefficients of the timesteps that are drawn: (n,).

    Raises:
        InputError: eps is predicted and some alpha is 0.
    """
    empty = int((alpha <= LEAST_SIGNAL).sum())
    if prediction_type == "epsilon" and empty:
        raise InputError(
            f"with zero terminal SNR, nothing of the picture is left at {empty} of the timesteps, and epsilon cannot "
            "be predicted there: train with prediction_type v_prediction or sample, or leave out the last timesteps"
        )
