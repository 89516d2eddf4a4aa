"""LCM and TCD: parity with Diffusers, its pipelines, and exact samples from an exact consistency function."""

from __future__ import annotations

import warnings

import diffusers
import numpy as np
import pytest
import torch
from scipy.stats import kstest, norm

import sd_ext
from sd_ext.errors import InputError
from sd_ext.schedulers.samplers.consistency import boundary, lcm, tcd
from sd_ext.schedulers.samplers.first_order import first_order
from sd_ext.schedulers.schedule import ZERO

from ..conftest import SD
from ..over import over
from ..test_parity import assert_close, both, network


def run(scheduler, set_up, eta=None, begin=0):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler.set_timesteps(**set_up)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    options = {"generator": torch.Generator().manual_seed(7), **({} if eta is None else {"eta": eta})}
    for t in scheduler.timesteps:
        x, other = scheduler.step(network(x), t, x, **options, return_dict=False)
    return x, other


SETUPS = [
    {"num_inference_steps": 1},
    {"num_inference_steps": 4},
    {"num_inference_steps": 7},
    {"num_inference_steps": 50},
    {"num_inference_steps": 4, "original_inference_steps": 20},
    {"num_inference_steps": 4, "strength": 0.5},
    {"num_inference_steps": 3, "strength": 0.7, "original_inference_steps": 30},
    {"timesteps": [999, 759, 499, 259]},
    {"timesteps": [999, 759, 499, 259], "strength": 0.5},
]


@over("prediction", ["epsilon", "v_prediction", "sample"])
@over("set_up", SETUPS)
def test_lcm_is_diffusers(set_up, prediction):
    theirs, ours = both("LCMScheduler", prediction_type=prediction)
    a, b = run(ours, dict(set_up)), None
    if set_up.get("strength") == 0.5 and "timesteps" in set_up:
        # Diffusers counts the steps it left out, so its last one adds noise; ours is clean.
        assert ours.timesteps.tolist() == [499, 259]
        return
    b = run(theirs, dict(set_up))
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    for mine, other in zip(a, b, strict=True):
        assert_close(mine, other)


@over("scaling", [0.01, 0.1, 1.0])
def test_the_boundary_condition_is_diffusers(scaling):
    theirs, ours = both("LCMScheduler", timestep_scaling=scaling)
    assert_close(run(ours, {"timesteps": [999, 400, 30, 3]})[0], run(theirs, {"timesteps": [999, 400, 30, 3]})[0])
    for t in (0, 3, 999):
        np.testing.assert_allclose(
            boundary(t, scaling), theirs.get_scalings_for_boundary_condition_discrete(t), rtol=1e-9
        )


def jump(scheduler, set_up, eta):
    """One call's result and another's: TCD's tuple in Diffusers has something else in second place."""
    scheduler.set_timesteps(**set_up)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(7)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x), t, x, eta=eta, generator=generator, return_dict=False)[0]
    return x


@over("eta", [0.0, 0.3, 1.0])
@over("set_up", [s for s in SETUPS if s != SETUPS[-1]])
def test_tcd_is_diffusers(set_up, eta):
    """With the end that Diffusers' TCD has, t = 0; see test_deviation_tcd_ends_clean."""
    theirs = diffusers.TCDScheduler(**SD)
    ours = sd_ext.TCDScheduler(**SD, final_sigmas_type="sigma_min", eta=eta)
    a, b = (jump(scheduler, dict(set_up), eta) for scheduler in (ours, theirs))
    assert ours.timesteps.tolist() == theirs.timesteps.tolist()
    assert_close(a, b)


# ---- exactness


MEAN, STD = 0.6, 0.25  # x0 ~ N(MEAN, STD^2), whose ODE has a closed form


def along_the_ode(x, alpha, sigma, alpha_to, sigma_to):
    scale = np.hypot(alpha_to * STD, sigma_to) / np.hypot(alpha * STD, sigma)
    return alpha_to * MEAN + scale * (x - alpha * MEAN)


def sample_exactly(table, target, seed):
    """Run the table with predictions of x0 that make the jump to `target(i)`, (alpha, sigma), exact."""
    levels, rng = table.levels, np.random.default_rng(seed)
    x = levels.alpha[0] * (MEAN + STD * rng.standard_normal(20_000)) + levels.sigma[0] * rng.standard_normal(20_000)
    for i, row in enumerate(table.rows[:, 0]):
        alpha, sigma = levels.alpha[i], levels.sigma[i]
        alpha_to, sigma_to = target(i)
        there = along_the_ode(x, alpha, sigma, alpha_to, sigma_to)
        x0 = (there - x * sigma_to / sigma) / (alpha_to - alpha * sigma_to / sigma)
        x = row[0] * x + row[2] * x0 + row[3] * rng.standard_normal(len(x))
    return x


@over("calls", [1, 2, 4, 16])
def test_lcm_samples_exactly_from_the_consistency_function(calls, schedule):
    levels = schedule.at(np.linspace(999, 100, calls)).then(ZERO)
    ends = sample_exactly(lcm(levels), lambda _: (1.0, 0.0), seed=calls)
    assert kstest(ends, norm(MEAN, STD).cdf).pvalue > 1e-3


@over("eta", [0.0, 0.3, 0.7, 1.0])
@over("calls", [1, 2, 4, 16])
def test_tcd_samples_exactly_from_the_trajectory_function(calls, eta):
    """gamma-sampling at weak and strong stochasticity."""
    scheduler = sd_ext.TCDScheduler(**SD, eta=eta)
    scheduler.set_timesteps(calls)
    levels, schedule = scheduler.levels, scheduler.schedule

    def target(i):
        if i == calls - 1:
            return 1.0, 0.0
        at = schedule.at([np.floor((1 - eta) * levels.t[i + 1])])
        return float(at.alpha[0]), float(at.sigma[0])

    ends = sample_exactly(scheduler.table(), target, seed=calls)
    assert kstest(ends, norm(MEAN, STD).cdf).pvalue > 1e-3
    assert scheduler.table().stochastic == (eta > 0 and calls > 1)


def test_limits_of_tcd(schedule):
    """Nothing kept is LCM without its boundary condition; everything kept is DDIM."""
    levels = schedule.at(np.linspace(999, 100, 6)).then(ZERO)
    np.testing.assert_allclose(tcd(levels, np.zeros(6)).rows, lcm(levels).rows, atol=1e-15)
    np.testing.assert_allclose(tcd(levels, levels.ratio[1:]).rows, first_order(levels).rows, atol=1e-7)
    scheduler = sd_ext.TCDScheduler(**SD, eta=0.0)
    scheduler.set_timesteps(6)
    np.testing.assert_allclose(scheduler.table().rows, first_order(scheduler.levels).rows, atol=1e-15)


def test_the_boundary_condition_hardly_matters_where_lcm_was_trained():
    rows = []
    for scaling in (10.0, float("inf")):
        scheduler = sd_ext.LCMScheduler(**SD, timestep_scaling=scaling)
        scheduler.set_timesteps(50)
        rows.append(scheduler.table().rows)
        assert scheduler.table().preserves == ("nothing" if scaling == 10 else "marginal")
    assert 0 < np.abs(rows[0] - rows[1]).max() < 1e-5


@over("name", ["lcm", "tcd"])
def test_the_last_step_is_clean_from_every_start(name):
    scheduler = sd_ext.make_scheduler(name)
    for calls in (1, 2, 3, 8):
        scheduler.set_timesteps(calls)
        for begin in range(calls):
            row = scheduler.table(begin).rows[-1, 0]
            np.testing.assert_allclose(row, [0, 0, 1, 0], atol=1e-6)


def lcm_pipeline(tiny_pipeline, cls):
    parts = {k: v for k, v in tiny_pipeline.components.items() if k not in ("unet", "scheduler")}
    unet = diffusers.UNet2DConditionModel.from_config(tiny_pipeline.unet.config, time_cond_proj_dim=8)
    pipe = cls(**parts, unet=unet, scheduler=sd_ext.LCMScheduler(**SD), requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_latent_consistency_pipelines(tiny_pipeline):
    """Diffusers' own, which call set_timesteps and step in LCM's way."""
    pipe = lcm_pipeline(tiny_pipeline, diffusers.LatentConsistencyModelPipeline)
    generator = torch.Generator().manual_seed(0)
    call = {"generator": generator, "output_type": "latent", "num_inference_steps": 4}
    assert torch.isfinite(pipe("a", original_inference_steps=40, **call).images).all()
    assert pipe.scheduler.timesteps.tolist() == [999, 749, 499, 249]
    pipe = lcm_pipeline(tiny_pipeline, diffusers.LatentConsistencyModelImg2ImgPipeline)
    image = torch.rand(1, 3, 64, 64, generator=generator)
    out = pipe("a", image, strength=0.5, **call).images
    assert torch.isfinite(out).all()
    assert pipe.scheduler.timesteps.tolist() == [499, 379, 259, 139]


@over(
    "arguments, says",
    [
        ({"num_inference_steps": 4, "original_inference_steps": 2000}, "original_inference_steps must be 1 to 1000"),
        ({"num_inference_steps": 30, "original_inference_steps": 20}, "30 calls are more than the 20"),
        ({"num_inference_steps": 30, "strength": 0.5}, "30 calls are more than the 25"),
        ({"num_inference_steps": 4, "strength": 0.0}, "strength must be"),
        ({"num_inference_steps": 4, "strength": 0.5, "timesteps": [3]}, "exactly one"),
        ({"num_inference_steps": 2.5, "strength": 0.5}, "whole number"),
        ({}, "exactly one"),
    ],
)
def test_bad_runs_are_refused_and_the_old_one_stays(arguments, says):
    scheduler = sd_ext.LCMScheduler(**SD)
    scheduler.set_timesteps(4)
    with pytest.raises(InputError, match=says):
        scheduler.set_timesteps(**arguments)
    assert scheduler.timesteps.tolist() == [999, 759, 499, 259]


@over(
    "name, option, value",
    [("lcm", "timestep_scaling", 0.0), ("lcm", "original_inference_steps", 0), ("tcd", "eta", 1.5)],
)
def test_bad_options_are_refused(name, option, value):
    with pytest.raises(InputError, match=f"{option} must be"):
        sd_ext.make_scheduler(name, SD, **{option: value})


def test_other_grids_take_no_strength():
    scheduler = sd_ext.make_scheduler("lcm karras")
    scheduler.set_timesteps(4)
    assert scheduler.table().calls == 4
    with pytest.raises(InputError, match="the config asks for the grid 'karras'"):
        scheduler.set_timesteps(4, strength=0.5)


def test_bad_eta_of_a_step_is_refused():
    scheduler = sd_ext.make_scheduler("tcd")
    scheduler.set_timesteps(4)
    x = torch.zeros(1, 4, 2, 2)
    with pytest.raises(InputError, match="eta must be 0 to 1"):
        scheduler.step(x, scheduler.timesteps[0], x, eta=1.5)


# ---- deviations


def test_deviation_tcd_ends_clean():
    """Diffusers' TCD ends at t = 0's level, with 3 % of noise left; ours ends clean, or there with "sigma_min"."""
    theirs, ours = both("TCDScheduler")
    x0, results = torch.full((1, 4, 32, 32), 0.3), []
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(4)
        x = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0))
        for t in scheduler.timesteps:
            alpha = theirs.alphas_cumprod[t] ** 0.5
            x = scheduler.step((x - alpha * x0) / (1 - alpha**2) ** 0.5, t, x, eta=0.3, return_dict=False)[0]
        results.append(float((x - x0).std()))
    assert results[0] > 0.02 and results[1] < 1e-5


def test_deviation_tcd_does_not_fall_back_to_ddim_in_pipelines():
    """Diffusers' pipelines pass their own eta = 0 to TCD unless told otherwise, which turns its gamma of 0.3 off."""
    scheduler = sd_ext.make_scheduler("tcd")
    scheduler.set_timesteps(4)
    x = torch.zeros(1, 4, 2, 2)
    scheduler.step(x, scheduler.timesteps[0], x, eta=0.0)
    assert scheduler._plan.run.table.stochastic


def test_deviation_more_calls_than_the_distillation_had_steps():
    """Diffusers refuses them; ours takes the timesteps from all trained ones."""
    theirs, ours = both("LCMScheduler")
    with pytest.raises(ValueError):
        theirs.set_timesteps(60)
    ours.set_timesteps(60)
    assert len(ours.timesteps) == 60 and ours.timesteps[0] == 999


def test_deviation_a_shortened_custom_schedule_ends_clean():
    """With timesteps= and strength < 1 Diffusers counts the steps it left out, so that its last step adds noise."""
    theirs, ours = both("LCMScheduler")
    last = []
    for scheduler in (theirs, ours):
        run(scheduler, {"timesteps": [999, 759, 499, 259], "strength": 0.5})
        scheduler.set_timesteps(timesteps=[999, 759, 499, 259], strength=0.5)
        x = torch.ones(1, 4, 16, 16)
        for t in scheduler.timesteps:
            x, denoised = scheduler.step(0 * x, t, x, return_dict=False)
        last.append(float((x - denoised).abs().max()))
    assert last[0] > 0.1 and last[1] < 1e-5


@over("calls", [4, 5, 8])
def test_tdd_takes_every_fourth_timestep(calls):
    """Of its 250, floor(250 i / n) from the noisiest, as its authors."""
    scheduler = sd_ext.make_scheduler("tdd", SD)
    scheduler.set_timesteps(calls)
    np.testing.assert_array_equal(scheduler.timesteps.numpy(), [999 - 4 * (250 * i // calls) for i in range(calls)])


@over("name, steps", [("lcm", 100), ("tcd", 100), ("tdd", 250)])
def test_the_steps_of_a_models_distillation_stay_as_its_config_says(name, steps):
    """Save for TDD, which they are part of."""
    scheduler = sd_ext.make_scheduler(name, {**SD, "original_inference_steps": 100})
    assert scheduler.config["original_inference_steps"] == steps
