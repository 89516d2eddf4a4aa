"""Targets, weights and timesteps against their formulas written out."""

import pytest
import torch

from sd_ext.training.objective import min_snr_weight, stratified_timesteps, target


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_target_gives_back_x0(kind):
    x0, eps = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    angle = torch.tensor(0.7, dtype=torch.float64)
    alpha, sigma = angle.cos(), angle.sin()
    x, wanted = alpha * x0 + sigma * eps, target(kind, x0, eps, alpha, sigma)
    back = {"epsilon": (x - sigma * wanted) / alpha, "v_prediction": alpha * x - sigma * wanted, "sample": wanted}[kind]
    torch.testing.assert_close(back, x0)


def test_min_snr_weight_is_one_weight_on_the_x0_error():
    snr = torch.tensor([0.01, 0.5, 5.0, 80.0], dtype=torch.float64)
    gamma = 5.0
    on_x0 = {
        "epsilon": min_snr_weight("epsilon", snr, gamma) * snr,  # eps error = snr x0 error
        "v_prediction": min_snr_weight("v_prediction", snr, gamma) * (snr + 1),  # v error = (snr + 1) x0 error
        "sample": min_snr_weight("sample", snr, gamma),
    }
    for weight in on_x0.values():
        torch.testing.assert_close(weight, torch.tensor([0.01, 0.5, 5.0, 5.0], dtype=torch.float64))


def test_min_snr_weight_off_and_at_zero_terminal_snr():
    snr = torch.tensor([0.0, 2.0])
    assert min_snr_weight("epsilon", snr, 0).tolist() == [1, 1]
    assert min_snr_weight("epsilon", snr, 5.0).tolist() == [1, 1]
    assert min_snr_weight("v_prediction", snr, 5.0)[0] == 0


def test_stratified_timesteps_fill_the_range():
    t = stratified_timesteps(10, 1000, torch.Generator().manual_seed(0))
    assert [int(x) // 100 for x in t] == list(range(10))
    other = stratified_timesteps(10, 1000, torch.Generator().manual_seed(1))
    assert not torch.equal(t, other)
