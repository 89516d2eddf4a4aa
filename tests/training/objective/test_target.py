"""Targets against the equations they solve."""

import pytest
import torch

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.schedulers import NoiseSchedule
from sd_ext.training.objective.target import check_terminal_snr, target


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_target_gives_back_x0(kind):
    x0, eps = torch.randn(2, 3, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    angle = torch.tensor(0.7, dtype=torch.float64)
    alpha, sigma = angle.cos(), angle.sin()
    x, wanted = alpha * x0 + sigma * eps, target(kind, x0, eps, alpha, sigma)
    back = {"epsilon": (x - sigma * wanted) / alpha, "v_prediction": alpha * x - sigma * wanted, "sample": wanted}[kind]
    torch.testing.assert_close(back, x0)


def test_a_prediction_type_that_is_not_there():
    with pytest.raises(UnknownNameError, match="v_prediction"):
        target("v_predicton", *[torch.ones(1)] * 4)


def test_eps_is_refused_where_nothing_is_left_of_the_picture():
    settings = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "num_train_timesteps": 1000}
    plain = torch.from_numpy(NoiseSchedule.from_config(settings).alpha)
    ending = torch.from_numpy(NoiseSchedule.from_config({**settings, "rescale_betas_zero_snr": True}).alpha)
    with pytest.raises(InputError, match=r"at 1 of the timesteps.*v_prediction or sample, or leave out"):
        check_terminal_snr("epsilon", ending)
    check_terminal_snr("epsilon", ending[:999])
    check_terminal_snr("epsilon", plain)
    check_terminal_snr("v_prediction", ending)
    check_terminal_snr("sample", ending)
