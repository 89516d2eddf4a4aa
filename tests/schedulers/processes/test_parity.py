"""The same samples as Diffusers' own classes on the processes that they are for."""

from __future__ import annotations

import warnings

import diffusers
import numpy as np
import pytest
import torch

import sd_ext

from ..over import over
from ..test_parity import assert_close, network
from .known import SVD


def sample(scheduler, calls, start, model=network, **set_up):
    """A run from a latent in the scheduler's own scale, by a network that sees it in that of the network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler.set_timesteps(calls, **set_up)
    x, generator = start(scheduler), torch.Generator().manual_seed(7)
    step = {"generator": generator} if "generator" in scheduler.step.__code__.co_varnames else {}
    for t in scheduler.timesteps:
        out = model(getattr(scheduler, "scale_model_input", lambda x, _: x)(x, t))
        x = scheduler.step(out, t, x, return_dict=False, **step)[0]
    return x


def noise(dtype=torch.float32):
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=dtype)


def exploding(scheduler):
    """Diffusers' scale, x0 + sigma eps."""
    return noise() * float(scheduler.sigmas[0])


def scaled(data):
    """Ours, in which the network reads."""
    return lambda scheduler: noise() * float(scheduler.sigmas[0]) / (float(scheduler.sigmas[0]) ** 2 + data**2) ** 0.5


EDM = [
    ("EDMEulerScheduler", "euler", {}),
    (
        "EDMEulerScheduler",
        "euler",
        {"prediction_type": "v_prediction", "sigma_data": 1.0, "sigma_schedule": "exponential"},
    ),
    ("EDMEulerScheduler", "euler", {"sigma_min": 0.01, "sigma_max": 20.0, "rho": 5.0}),
    ("EDMDPMSolverMultistepScheduler", "dpm++ 2m", {}),
    ("EDMDPMSolverMultistepScheduler", "dpm++ 2m", {"solver_type": "heun", "prediction_type": "v_prediction"}),
    ("EDMDPMSolverMultistepScheduler", "dpm++ 2m", {"sigma_schedule": "exponential"}),
]


@over("theirs, name, config", EDM)
@over("calls", [2, 7, 20])
def test_edm_is_diffusers(theirs, name, config, calls):
    plain = getattr(diffusers, theirs)(**config)
    ours = sd_ext.make_scheduler(name, plain.config, **{k: v for k, v in config.items() if k == "solver_type"})
    a = sample(ours, calls, scaled(plain.config.sigma_data))
    b = sample(plain, calls, exploding)
    torch.testing.assert_close(ours.timesteps, plain.timesteps.float(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.sigmas, plain.sigmas.float(), atol=1e-4, rtol=1e-4)
    assert_close(a, b, 2e-4)


def test_edm_that_ends_at_sigma_min_has_no_step_of_length_zero():
    """Diffusers repeats sigma_min; ours takes the grid of one level more. The end is in the scale of pictures."""
    plain = diffusers.EDMEulerScheduler(final_sigmas_type="sigma_min")
    ours = sd_ext.make_scheduler("euler", plain.config)
    for scheduler in (plain, ours):
        scheduler.set_timesteps(6)
    assert plain.sigmas[-1] == plain.sigmas[-2]
    plain.set_timesteps(7)
    torch.testing.assert_close(ours.sigmas, plain.sigmas[:-1].float(), rtol=1e-5, atol=1e-7)
    assert (ours.levels.alpha[-1], ours.levels.sigma[-1]) == (1, 0.002)


@over("calls", [3, 10, 25])
def test_stable_video_diffusion_is_diffusers(calls):
    plain = diffusers.EulerDiscreteScheduler(**SVD)
    for ours in (sd_ext.make_scheduler("euler", plain.config), sd_ext.EulerDiscreteScheduler(**SVD)):
        a, b = sample(ours, calls, scaled(1.0)), sample(plain, calls, exploding)
        torch.testing.assert_close(ours.timesteps, plain.timesteps, atol=1e-5, rtol=1e-5)
        assert_close(a, b, 2e-4)


@over("spacing", ["linspace", "trailing", "leading"])
def test_continuous_timesteps_on_the_steps_of_betas(spacing):
    config = {**SVD, "use_karras_sigmas": False, "timestep_spacing": spacing, "sigma_min": None, "sigma_max": None}
    plain, ours = diffusers.EulerDiscreteScheduler(**config), sd_ext.EulerDiscreteScheduler(**config)
    assert_close(sample(ours, 9, scaled(1.0)), sample(plain, 9, exploding), 2e-4)
    torch.testing.assert_close(ours.timesteps, plain.timesteps, atol=1e-4, rtol=1e-4)


def test_continuous_timesteps_are_for_v_prediction():
    """As in Diffusers, whose Euler tells other networks whole timesteps."""
    config = {"timestep_type": "continuous", "prediction_type": "epsilon", "timestep_spacing": "trailing"}
    plain, ours = diffusers.EulerDiscreteScheduler(**config), sd_ext.EulerDiscreteScheduler(**config)
    for scheduler in (plain, ours):
        scheduler.set_timesteps(5)
    assert ours.timesteps.tolist() == plain.timesteps.tolist()


@over("spacing", ["trailing", "leading"])
@over("zero", [False, True])
def test_cogvideox_is_diffusers(spacing, zero):
    options = {"prediction_type": "v_prediction", "clip_sample": False, "rescale_betas_zero_snr": zero}
    plain = diffusers.CogVideoXDDIMScheduler(timestep_spacing=spacing, snr_shift_scale=1.5, **options)
    ours = sd_ext.make_scheduler("ddim", plain.config)
    assert_close(sample(ours, 10, lambda _: noise()), sample(plain, 10, lambda _: noise()), 1e-4)


@over("calls", [1, 2, 4])
@over("clip", [False, True])
def test_consistency_models_are_diffusers(calls, clip):
    """Save for the noise of sigma_min, which their x0 has already: Diffusers takes it out of what is added back."""
    plain = diffusers.CMStochasticIterativeScheduler(clip_denoised=clip)
    ours = sd_ext.make_scheduler("lcm", plain.config)
    assert ours.config["clip_sample"] is clip
    a, b = sample(ours, calls, scaled(0.5)), sample(plain, calls, lambda _: noise() * 80.0)
    torch.testing.assert_close(ours.timesteps, plain.timesteps.float(), atol=1e-3, rtol=1e-5)
    if calls > 1:  # with one, Diffusers adds none
        assert_close(a, b, 2e-3)


FLOWS = [
    {},
    {"shift": 3.0},
    {"shift": 3.0, "use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"shift": 2.0, "use_beta_sigmas": True},
    {"shift": 3.0, "shift_terminal": 0.1},
    {"shift": 2.0, "invert_sigmas": True},
]


@over("config", FLOWS)
@over("name", ["euler", "ddim", "flow euler", "lcm"])
@over("calls", [2, 5, 28])
def test_flow_is_diffusers(name, config, calls):
    """Euler's method has many names: all of them are Diffusers' FlowMatchEuler on a flow model's config."""
    cls = diffusers.FlowMatchLCMScheduler if name == "lcm" else diffusers.FlowMatchEulerDiscreteScheduler
    if name == "lcm" and config.get("invert_sigmas"):
        return  # Diffusers' LCM takes 1 - sigma for sigma there, and jumps to no picture
    plain = cls(**config)
    ours = sd_ext.make_scheduler(name, plain.config)
    set_up = [{}, {"sigmas": np.linspace(1.0, 1 / calls, calls)}]
    for more in set_up:
        count = None if more else calls
        a, b = sample(ours, count, lambda _: noise(), **more), sample(plain, count, lambda _: noise(), **more)
        torch.testing.assert_close(ours.timesteps, plain.timesteps.float(), atol=1e-2, rtol=1e-5)
        torch.testing.assert_close(ours.sigmas, plain.sigmas.float(), atol=1e-6, rtol=1e-5)
        assert_close(a, b, 2e-4)


@over("grid", ["karras", "exponential", "beta_sigmas"])
def test_a_grid_that_is_named_is_that_of_the_flag(grid):
    flag = {"karras": "use_karras_sigmas", "exponential": "use_exponential_sigmas", "beta_sigmas": "use_beta_sigmas"}
    plain = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **{flag[grid]: True})
    config = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
    ours = sd_ext.make_scheduler(f"euler {grid}", config)
    for more in ({}, {"sigmas": np.linspace(1.0, 1 / 9, 9)}):
        count = None if more else 9
        for scheduler in (plain, ours):
            scheduler.set_timesteps(count, **more)
        torch.testing.assert_close(ours.sigmas, plain.sigmas.float(), atol=1e-6, rtol=1e-5)


def test_other_grids_say_that_they_place_the_calls(caplog):
    ours = sd_ext.make_scheduler("dpm++ 2m simple", diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config)
    with caplog.at_level("WARNING"):
        ours.set_timesteps(sigmas=np.linspace(1.0, 1 / 9, 9))
    assert len(ours.timesteps) == 9 and "'simple' places the calls" in caplog.text


@over("kind", ["exponential", "linear"])
@over("name", ["euler", "flow euler"])
def test_flow_by_resolution_is_diffusers(kind, name):
    plain = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind, shift=3.0)
    ours = sd_ext.make_scheduler(name, plain.config)
    for more in ({"sigmas": np.linspace(1.0, 1 / 8, 8), "mu": 0.83}, {"num_inference_steps": 8, "mu": 1.15}):
        count = more.pop("num_inference_steps", None)
        assert_close(sample(ours, count, lambda _: noise(), **more), sample(plain, count, lambda _: noise(), **more))


def test_minimax_is_diffusers():
    """n steps of its scheduler are n - 1 calls, from 1 to 0 itself."""
    plain = diffusers.MiniMaxH3Scheduler(shift=12.0)
    ours = sd_ext.make_scheduler("euler", plain.config)
    plain.set_timesteps(6)
    ours.set_timesteps(sigmas=np.linspace(1, 0, 6)[:-1])
    torch.testing.assert_close(ours.timesteps, plain.timesteps.float(), atol=1e-6, rtol=0)
    x = y = noise()
    for t, u in zip(plain.timesteps, ours.timesteps, strict=True):
        x, y = plain.step(network(x), t, x).prev_sample, ours.step(network(y), u, y).prev_sample
    assert_close(y, x)


SOLVERS = ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler"]


@over("cls", SOLVERS)
def test_solvers_on_flow_sigmas_are_diffusers(cls):
    """Diffusers' solvers start a little below sigma = 1, where they would divide by zero; ours at 1 itself."""
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    plain, ours = getattr(diffusers, cls)(**options), getattr(sd_ext, cls)(**options)
    for scheduler in (plain, ours):
        scheduler.set_timesteps(8)
    torch.testing.assert_close(ours.sigmas[:-1], plain.sigmas[:-1].float(), atol=2e-3, rtol=1e-2)
    ours.set_timesteps(sigmas=plain.sigmas[:-1].double() / (3 - 2 * plain.sigmas[:-1].double()))  # before the shift
    torch.testing.assert_close(ours.sigmas[:-1], plain.sigmas[:-1].float(), atol=1e-6, rtol=1e-5)


@over("more", [{}, {"sigma_min": 0.01, "sigma_max": 200.0}, {"sigma_max": 80.0}])
def test_karras_on_a_flow_is_diffusers_unipc(more):
    """It spaces sigma / (1 - sigma), between the ends of the betas where the config gives none (Cosmos 2.5 does)."""
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_karras_sigmas": True, **more}
    plain = diffusers.UniPCMultistepScheduler(**options)
    ours = [sd_ext.UniPCMultistepScheduler(**options)]
    if more:  # an end above 1 is no sigma of a flow, so that every sampler reads it so
        ours.append(sd_ext.make_scheduler("euler", plain.config))
    for scheduler in (plain, *ours):
        scheduler.set_timesteps(7)
    for each in ours:
        torch.testing.assert_close(each.sigmas, plain.sigmas.float(), atol=1e-5, rtol=1e-5)
        assert torch.equal(each.timesteps.floor(), plain.timesteps.float())


def test_what_such_a_grid_leaves_out_is_said(caplog):
    options = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "use_karras_sigmas": True}
    ours = sd_ext.UniPCMultistepScheduler(**options, flow_shift=3.0)
    with caplog.at_level("WARNING"):
        ours.set_timesteps(7)
    assert "the shift has no effect" in caplog.text
    with pytest.raises(sd_ext.errors.InputError, match="sigma_min must be positive and below sigma_max"):
        sd_ext.UniPCMultistepScheduler(**options, sigma_min=3.0, sigma_max=2.0).set_timesteps(7)


def test_dance_diffusion_is_told_its_angle():
    plain, ours = diffusers.IPNDMScheduler(), sd_ext.make_scheduler("ipndm", diffusers.IPNDMScheduler().config)
    for scheduler in (plain, ours):
        scheduler.set_timesteps(10)
    torch.testing.assert_close(ours.timesteps, plain.timesteps.float(), atol=1e-6, rtol=0)
    np.testing.assert_allclose(ours.levels.alpha[:-1], plain.alphas[:-1].numpy(), atol=1e-3)
    assert ours.schedule.prediction.kind == "v_prediction"


@over("name", ["heun", "dpm++ 2m", "dpm++ sde", "restart"])
def test_a_pipelines_sigmas_are_calls_for_every_sampler(name):
    """Flow pipelines hand over one sigma a call; samplers of several calls a step take their steps along that curve."""
    ours = sd_ext.make_scheduler(name, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config)
    for calls in (1, 5, 8):
        ours.set_timesteps(sigmas=np.linspace(1.0, 1 / calls, calls))
        assert len(ours.timesteps) == calls and ours.sigmas[0] == 1
    with pytest.raises(sd_ext.errors.InputError, match="sigmas must be 4 numbers"):
        ours.set_timesteps(4, sigmas=[1.0, 0.5])


def test_sigmas_of_edm_are_sigmas():
    """Diffusers' EDMEuler takes them for shares of the way down."""
    ours = sd_ext.make_scheduler("euler", diffusers.EDMEulerScheduler().config)
    ours.set_timesteps(sigmas=[40.0, 3.0, 0.1])
    np.testing.assert_allclose(ours.sigmas, [40.0, 3.0, 0.1, 0.0], rtol=1e-6)
    np.testing.assert_allclose(ours.timesteps, np.log([40.0, 3.0, 0.1]) / 4, rtol=1e-6)
