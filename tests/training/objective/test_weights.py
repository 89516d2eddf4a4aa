"""Weights: each is one weight on the error of x0, whatever the network predicts, and never infinite."""

import math

import pytest
import torch

from sd_ext.errors import UnknownNameError
from sd_ext.training.objective.settings import WEIGHTS
from sd_ext.training.objective.target import target
from sd_ext.training.objective.weights import loss_weight

SNR = torch.tensor([0.0047, 0.5, 1.0, 5.0, 80.0, 1175.0], dtype=torch.float64)
TYPES = ("epsilon", "v_prediction", "sample")


@pytest.mark.parametrize("kind", [k for k in WEIGHTS if k != "none"])
def test_the_weighted_error_does_not_depend_on_the_prediction_type(kind):
    """The same guess of x0, told as eps, v or x0, costs the same: through `target`, not through the formulas."""
    torch.manual_seed(0)
    sigma = (1 / (1 + SNR)).sqrt()
    alpha = (1 - sigma.square()).sqrt()
    x0, eps, guess = (torch.randn(len(SNR), dtype=torch.float64) for _ in range(3))
    x = alpha * x0 + sigma * eps
    costs = []
    for prediction_type in TYPES:
        right = target(prediction_type, x0, eps, alpha, sigma)
        guessed = target(prediction_type, guess, (x - alpha * guess) / sigma, alpha, sigma)
        costs.append(loss_weight(kind, prediction_type, SNR) * (guessed - right).square())
    torch.testing.assert_close(costs[0], costs[2])
    torch.testing.assert_close(costs[1], costs[2])


def test_formulas_as_published():
    close = torch.testing.assert_close
    close(loss_weight("min_snr", "epsilon", SNR, 5.0), torch.minimum(SNR, torch.tensor(5.0)) / SNR)
    close(loss_weight("min_snr", "v_prediction", SNR, 5.0), torch.minimum(SNR, torch.tensor(5.0)) / (SNR + 1))
    close(loss_weight("soft_min_snr", "sample", SNR, 4.0), 1 / (1 / SNR + 1 / 4))
    close(loss_weight("debiased", "epsilon", SNR), 1 / SNR.sqrt())
    close(loss_weight("p2", "epsilon", SNR, 0.5, k=2.0), (2 + SNR) ** -0.5)
    assert loss_weight("none", "v_prediction", SNR).tolist() == [1] * len(SNR)


def test_soft_min_snr_is_below_min_snr_and_half_of_it_at_gamma():
    hard, soft = (loss_weight(kind, "sample", SNR, 5.0) for kind in ("min_snr", "soft_min_snr"))
    assert (soft < hard).all()
    torch.testing.assert_close(soft[3], hard[3] / 2)


def test_what_gamma_is_when_not_given():
    assert torch.equal(loss_weight("min_snr", "epsilon", SNR), loss_weight("min_snr", "epsilon", SNR, 5.0))
    torch.testing.assert_close(loss_weight("p2", "epsilon", SNR), 1 / (1 + SNR))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("prediction_type", TYPES)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_no_weight_is_infinite(kind, prediction_type, dtype):
    weight = loss_weight(kind, prediction_type, torch.tensor([0.0, 1e-30, 1e30, math.inf], dtype=dtype))
    assert weight.dtype == dtype
    assert ((weight >= 0) & (weight < 1e3)).all()


def test_limits_of_min_snr():
    ends = torch.tensor([0.0, math.inf])
    assert loss_weight("min_snr", "epsilon", ends).tolist() == pytest.approx([1, 0], abs=1e-4)
    assert loss_weight("min_snr", "v_prediction", ends).tolist() == pytest.approx([0, 0], abs=1e-4)
    assert loss_weight("min_snr", "sample", ends).tolist() == pytest.approx([0, 5], abs=1e-4)


def test_names_that_are_not_there():
    with pytest.raises(UnknownNameError, match="min_snr"):
        loss_weight("minsnr", "epsilon", SNR)
    with pytest.raises(UnknownNameError, match="epsilon"):
        loss_weight("none", "eps", SNR)
