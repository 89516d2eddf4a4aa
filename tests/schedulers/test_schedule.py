from __future__ import annotations

import diffusers
import numpy as np
import pytest

from sd_ext.errors import InputError
from sd_ext.schedulers import NoiseSchedule
from sd_ext.schedulers.processes.betas import BETAS
from sd_ext.schedulers.processes.flow import Flow

from .conftest import SD
from .over import over


@over("name", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
@over("zero_snr", [False, True])
def test_alphas_equal_diffusers(name, zero_snr):
    config = {**SD, "beta_schedule": name, "rescale_betas_zero_snr": zero_snr}
    theirs = diffusers.DDPMScheduler(**config).alphas_cumprod.double().sqrt().numpy()
    ours = NoiseSchedule.from_config(config)
    np.testing.assert_allclose(ours.alpha, theirs, atol=2e-6)


def test_laplace_equals_diffusers():
    from diffusers.schedulers.scheduling_ddim import betas_for_alpha_bar

    np.testing.assert_allclose(
        BETAS["laplace"](1000, 0, 0), betas_for_alpha_bar(1000, alpha_transform_type="laplace").numpy(), atol=1e-6
    )


def test_zero_terminal_snr_is_exact():
    schedule = NoiseSchedule.from_config({**SD, "rescale_betas_zero_snr": True})
    assert schedule.alpha[-1] == 0 and schedule.sigma[-1] == 1
    assert schedule.alpha[0] == pytest.approx(NoiseSchedule.from_config(SD).alpha[0], rel=1e-12)


def test_between_timesteps_log_sigma_is_linear(schedule):
    between = schedule.at([400.25])
    expected = 0.75 * schedule.lam[400] + 0.25 * schedule.lam[401]
    assert between.lam[0] == pytest.approx(expected, abs=1e-12)
    assert between.alpha[0] ** 2 + between.sigma[0] ** 2 == pytest.approx(1, abs=1e-14)


@over("zero_snr", [False, True])
@over("flow", [False, True])
def test_lambda_and_timestep_are_inverse(zero_snr, flow):
    config = {**SD, "rescale_betas_zero_snr": zero_snr, **({"prediction_type": "flow_prediction"} if flow else {})}
    schedule = NoiseSchedule.from_config(config)
    t = np.array([998.7, 998.0, 700.3, 20.0, 0.5])
    levels = schedule.at(t)
    back = schedule.at_lambda(levels.lam)
    np.testing.assert_allclose(back.t, t, atol=1e-7)
    np.testing.assert_allclose(back.sigma, levels.sigma, atol=1e-12)


def test_flow_is_a_straight_line():
    levels = Flow(1000).at([1000, 250, 0])
    np.testing.assert_allclose(levels.sigma, [1, 0.25, 0])
    np.testing.assert_allclose(levels.alpha + levels.sigma, 1)


@over(
    "config, says",
    [
        ({"beta_schedule": "scaled_lineer"}, "scaled_linear"),
        ({"trained_betas": []}, "betas must be 1 to"),
        ({"trained_betas": [0.1, 1.5]}, r"\(0, 1\]"),
    ],
)
def test_bad_betas_are_refused(config, says):
    with pytest.raises(InputError, match=says):
        NoiseSchedule.from_config(config)
