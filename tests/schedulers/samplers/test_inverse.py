"""Inversion: Diffusers' schedulers of the same names, and the way there and back."""

from __future__ import annotations

import diffusers
import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.errors import InputError

from ..conftest import SD
from ..mixture import run_table
from ..over import over

DDIM, DPM = "DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"


def both(name, **config):
    return [getattr(lib, name).from_config({**SD, **config}) for lib in (diffusers, sd_ext)]


def inverted(scheduler, calls, prediction="epsilon"):
    """What a run makes of a picture, with a smooth stand-in for a network."""
    scheduler.set_timesteps(calls)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.7
    for t in scheduler.timesteps:
        told = float(t) / 1000
        output = torch.tanh(x * (0.3 + told)) + 0.1 * told
        x = scheduler.step(output, t, x).prev_sample
    return x


@over("calls", [5, 10, 20])
@over("config", [{}, {"set_alpha_to_one": False}, {"set_alpha_to_one": False, "prediction_type": "v_prediction"},
                 {"steps_offset": 1}, {"timestep_spacing": "trailing", "set_alpha_to_one": False},
                 {"set_alpha_to_one": False, "clip_sample": True}])  # fmt: skip
def test_ddim_is_that_of_diffusers(config, calls):
    theirs, ours = both(DDIM, **{"clip_sample": False, **config})
    expected, got = inverted(theirs, calls), inverted(ours, calls)
    np.testing.assert_allclose(ours.timesteps.numpy(), theirs.timesteps.numpy())
    if not config.get("clip_sample"):  # then Diffusers keeps an eps that does not belong to the clipped x0
        torch.testing.assert_close(got, expected, atol=2e-4, rtol=2e-4)
    assert torch.isfinite(got).all()


@over("calls", [4, 10, 20])
@over("config", [{}, {"solver_order": 3}, {"solver_order": 1}, {"algorithm_type": "dpmsolver"},
                 {"solver_type": "heun"}, {"timestep_spacing": "leading", "steps_offset": 1},
                 {"prediction_type": "v_prediction"}, {"lambda_min_clipped": -2.0},
                 {"use_exponential_sigmas": True}, {"use_karras_sigmas": True}])  # fmt: skip
def test_dpm_solver_is_that_of_diffusers(config, calls):
    flagged = any(name.startswith("use_") for name in config)
    if flagged and calls > 10:
        return  # timesteps that Diffusers cut or rounded are the same there, and it loses its place
    theirs, ours = both(DPM, **config)
    expected, got = inverted(theirs, calls), inverted(ours, calls)
    np.testing.assert_allclose(ours.timesteps.numpy(), theirs.timesteps.numpy(), atol=1.0 if flagged else 0)
    tolerance = 5e-3 if flagged else 1e-3
    torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@over("trained", [25, 1000])
def test_as_many_calls_as_trained_timesteps(trained):
    scheduler = sd_ext.DPMSolverMultistepInverseScheduler(num_train_timesteps=trained)
    scheduler.set_timesteps(trained)
    assert len(scheduler.timesteps.unique()) == trained
    assert np.all(np.diff(scheduler.levels.sigma) > 0) and scheduler.levels.t[-1] == trained - 1


@over("name", ["ddim inverse", "dpm++ 2m inverse"])
@over("grid", [None, "karras", "trailing", "normal"])
@over(
    "model",
    [{}, {"prediction_type": "flow_prediction"}, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}],
)
def test_levels_rise_from_the_least_noise(model, grid, name):
    scheduler = sd_ext.make_scheduler(name, {**SD, "steps_offset": 1, **model}, grid=grid)
    for calls in (1, 2, 9):
        scheduler.set_timesteps(calls)
        levels = scheduler.levels
        assert len(scheduler.timesteps) == calls
        assert np.all(np.diff(levels.sigma) > 0)
        assert levels.sigma[0] <= scheduler.schedule.sigma[1] + 1e-12
        assert np.isfinite(scheduler.table().rows).all()


@over("up, down, worst", [("ddim inverse", "ddim", 0.02), ("dpm++ 2m inverse", "dpm++ 2m", 0.003)])
def test_there_and_back_is_the_picture(up, down, worst, mixture):
    """To the error of the two runs, which halves with DDIM's steps and falls to a quarter with DPM++ 2M's."""
    errors = []
    for calls in (50, 100, 200):
        scheduler = sd_ext.make_scheduler(up, SD, grid="normal")
        scheduler.set_timesteps(calls)
        levels = scheduler.levels
        x = mixture.sample(16, levels.alpha[0], levels.sigma[0], seed=2)
        noise = run_table(scheduler.table(), mixture, x)
        back = sd_ext.make_scheduler(
            down, {**SD, "set_alpha_to_one": False}, final_sigmas_type="sigma_min", grid="normal"
        )
        back.set_timesteps(calls)
        errors.append(float(np.sqrt(np.mean((run_table(back.table(), mixture, noise) - x) ** 2))))
    assert errors[-1] < worst and errors[1] < 0.7 * errors[0] and errors[2] < 0.7 * errors[1], errors


def test_deviation_inverse_ddim_does_not_clip():
    """What clipping makes of x0 cannot be found on the way back."""
    theirs, ours = both(DDIM)
    assert theirs.config["clip_sample"] and not ours.config["clip_sample"]
    kept, clipped = inverted(both(DDIM, clip_sample=False)[0], 10), inverted(theirs, 10)
    assert (kept - clipped).abs().max() > 0.01
    torch.testing.assert_close(inverted(ours, 10), kept, atol=2e-4, rtol=2e-4)


def test_clipping_says_nothing_of_the_first_step_which_is_from_a_clean_picture():
    x, eps = torch.full((1, 1, 2, 2), 0.5), torch.randn(1, 1, 2, 2)
    plain, clipping = (sd_ext.DDIMInverseScheduler(**SD, clip_sample=clip) for clip in (False, True))
    for scheduler in (plain, clipping):
        scheduler.set_timesteps(10)
    one, other = (s.step(eps, s.timesteps[0], x).prev_sample for s in (plain, clipping))
    torch.testing.assert_close(one, other)


def test_what_cannot_be_inverted_says_why():
    with pytest.raises(InputError, match="cannot start clean with a network that predicts the picture"):
        sd_ext.DDIMInverseScheduler(prediction_type="sample")
    with pytest.raises(InputError, match=r"cannot be 'sde-dpmsolver\+\+': the noise .* is found, not drawn"):
        sd_ext.DPMSolverMultistepInverseScheduler(algorithm_type="sde-dpmsolver++")
    with pytest.raises(InputError, match="places its own steps, upwards"):
        sd_ext.make_scheduler("ddim inverse", SD).set_timesteps(timesteps=[1, 500])
