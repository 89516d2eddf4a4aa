"""Every sampler on every process: right on one-point data, as many calls as asked, told what Diffusers tells."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sd_ext

from ..over import INVERSE, NAMES, over
from .known import KNOWN, make, to_the_point

FEW = ["ddim", "dpm++ 2m", "plms", "flow heun", "dpm++ sde", "lcm", "restart", "euler cfg++"]
"""Samplers that use all that a process gives: x0 and eps, one call a step and two, noise, jumps, two fields."""


@over("name", FEW, full=[name for name in NAMES if name not in INVERSE])
@over("process", KNOWN)
@over("calls", [5], full=[1, 2, 5, 12])
def test_one_point_data_are_found_in_as_many_calls_as_asked(name, process, calls):
    known = KNOWN[process]
    if name in ("plms", "pndm") and calls == 1 and process in ("betas", "CogVideoX"):
        return  # its timesteps are Diffusers', and the one call of "leading" is at the least noise
    scheduler = make(name, known, calls)
    assert len(scheduler.timesteps) == scheduler.num_inference_steps == calls
    end = to_the_point(scheduler, known)
    assert torch.isfinite(end).all()
    tolerance = 1e-3 if name == "lcm" else 1e-5 + 4 * scheduler.levels.sigma[-1]  # some end at the least noise
    torch.testing.assert_close(end, torch.full_like(end, 0.7), atol=tolerance, rtol=0)


@over("name", [name for name in FEW if name != "restart"], full=[name for name in NAMES if name not in INVERSE])
@over("process", KNOWN)
@over(
    "options",
    [
        {"set_alpha_to_one": False},
        {"final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True},
        {"set_alpha_to_one": False, "final_sigmas_type": "sigma_min", "grid": "karras", "sigma_min": 0.002},
    ],
)
def test_no_run_ends_with_more_noise_than_its_last_call(options, process, name):
    """A config's `sigma_min` can be below the training's least noise, where runs end that do not end clean."""
    known, has = KNOWN[process], sd_ext.make_scheduler(name).config
    scheduler = make(name, known, 6, **{option: value for option, value in options.items() if option in has})
    ratio = scheduler.levels.ratio
    assert ratio[-1] <= ratio[:-1].min() * (1 + 1e-9)
    if scheduler.table().preserves == "marginal":
        end = to_the_point(scheduler, known)
        torch.testing.assert_close(end, torch.full_like(end, 0.7), atol=1e-3 + 4 * scheduler.levels.sigma[-1], rtol=0)


@over("process", KNOWN)
def test_networks_are_told_their_timestep_and_get_their_scale(process):
    known = KNOWN[process]
    scheduler = make("euler", known, 7)
    for t, sigma, ratio, alpha in zip(
        scheduler.timesteps.tolist(),
        scheduler.sigmas.tolist(),
        scheduler.levels.ratio,
        scheduler.levels.alpha,
        strict=False,
    ):
        own = sigma if scheduler.schedule.flow else float(ratio)
        assert alpha == pytest.approx(known.scale(own), abs=1e-6)
        if known.told is not None:
            assert t == pytest.approx(known.told(own), rel=1e-5, abs=1e-6) or math.isinf(own)


@over("process", KNOWN)
def test_noise_at_a_calls_timestep_is_that_of_its_level(process):
    """Image to image: add_noise and scale_noise at the timesteps of a run, and the run from there on."""
    known = KNOWN[process]
    scheduler = make("dpm++ 2m", known, 8)
    x0, noise = torch.full((1, 1, 2, 2), 0.7).double(), torch.randn(1, 1, 2, 2).double()
    for i in (1, 4, 7):
        level = scheduler.levels[i : i + 1]
        expected = float(level.alpha[0]) * x0 + float(level.sigma[0]) * noise
        t = scheduler.timesteps[i : i + 1]
        torch.testing.assert_close(scheduler.scale_noise(x0, t, noise), expected, atol=1e-9, rtol=1e-9)
        tolerance = 2e-3 if process in ("Stable Audio", "Dance Diffusion") else 1e-4  # between entries of a list
        torch.testing.assert_close(scheduler.add_noise(x0, noise, t), expected, atol=tolerance, rtol=0)


@over("process", KNOWN)
@over("grid", ["karras", "simple", "linspace", "beta", "kl_optimal"], full=[g.name for g in sd_ext.list_grids()])
def test_named_grids_are_on_the_process(process, grid):
    """Levels that belong together, whatever formula placed them."""
    if grid in ("leading", "trailing") and process not in ("betas", "zero SNR", "CogVideoX", "SVD"):
        return  # timestep spacings, which flow and EDM have no use for
    known = KNOWN[process]
    calls = 6 if grid != "ddim_uniform" else 5
    scheduler = make("dpm++ 2m", known, calls, grid=grid)
    levels = scheduler.levels
    assert np.all(np.diff(levels.ratio) < 0) and len(scheduler.timesteps) == calls
    calls = levels[:-1]
    trained = scheduler.schedule.time(calls) > 0  # some published lists end below the least trained noise
    again = scheduler.schedule.at_told(calls.t)
    np.testing.assert_allclose(again.sigma[trained], calls.sigma[trained], atol=1e-5)
    np.testing.assert_allclose(again.alpha[trained], calls.alpha[trained], atol=1e-4)


@over("process", ["EDM", "SVD", "Mochi"])
def test_what_is_about_training_times_is_not_about_timesteps(process):
    """Noise and guidance in the middle of a run, whatever the network is told there."""
    known = KNOWN[process]
    sa = make("sa-solver", known, 20)
    noisy = np.flatnonzero(sa.table().rows[:, 0, -1])
    times = sa.schedule.time(sa.levels)
    window = (times >= sa.config["tau_end"]) & (times <= sa.config["tau_start"])
    np.testing.assert_array_equal(noisy, np.flatnonzero(window[:-1]))
    assert 0 < len(noisy) < 20
    linear = make("dpm++ 2m", known, 20, guidance_schedule="linear").table().rows
    cosine = make("dpm++ 2m", known, 20, guidance_schedule="cosine").table().rows
    assert np.isfinite(linear).all() and not np.allclose(linear, cosine)
