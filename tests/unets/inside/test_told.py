"""What a U-Net is told by pipelines: those that begin late, end early, take one step, or share their parts."""

from __future__ import annotations

import diffusers
import pytest
import torch

import sd_ext
from sd_ext.unets.inside.told import place

from ...conftest import build_tiny_sdxl_pipeline

STEPS = 10


def drawn(pipe, steps=STEPS, **more):
    return pipe(
        "a b", num_inference_steps=steps, output_type="latent", generator=torch.Generator().manual_seed(0), **more
    ).images


def to_image(pipe):
    """Image to image of the same parts, as `from_pipe` makes it."""
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


PICTURE = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def pipe(tiny_pipeline):
    made = diffusers.StableDiffusionPipeline(**tiny_pipeline.components, requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    return made


def places(pipe, draw):
    """(step, total) at each call of the U-Net."""
    seen = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, args, __: seen.append(place(pipe, args[1])), with_kwargs=True)
    try:
        draw()
    finally:
        hook.remove()
    return seen


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "DDIMScheduler", "ours"])
def test_a_base_that_hands_over_to_a_refiner_begins_at_the_first_step(kind):
    pipe = build_tiny_sdxl_pipeline()
    config = pipe.scheduler.config
    ours = kind == "ours"
    pipe.scheduler = sd_ext.make_scheduler("dpm++ 2m", config) if ours else getattr(diffusers, kind).from_config(config)
    seen = places(pipe, lambda: drawn(pipe, denoising_end=0.7))
    assert seen == [(step, len(seen)) for step in range(len(seen))] and len(seen) in (7, 8)
    assert places(pipe, lambda: drawn(pipe)) == [(step, STEPS) for step in range(STEPS)]


@pytest.mark.parametrize("kind", ["EulerDiscreteScheduler", "DDIMScheduler", "ours"])
def test_image_to_image_begins_later(pipe, kind):
    config, ours = pipe.scheduler.config, kind == "ours"
    pipe.scheduler = sd_ext.make_scheduler("dpm++ 2m", config) if ours else getattr(diffusers, kind).from_config(config)
    other = to_image(pipe)
    assert places(other, lambda: drawn(other, image=PICTURE, strength=0.5)) == [(step, 5) for step in range(5)]
    other.scheduler.set_timesteps(STEPS)  # what it said of its run is over
    assert [place(other, t) for t in other.scheduler.timesteps] == [(step, STEPS) for step in range(STEPS)]


@pytest.mark.parametrize(
    "option", [{"pag_scale": 3.0, "pag_interval": [0.0, 0.5]}, {"cache_schedule": [0, 2]}, {"cfg_rescale": 0.7}]
)
@pytest.mark.parametrize("ran_at", [None, 1.0, 7.5])
def test_the_pipeline_that_runs_is_asked_where_others_share_its_parts(pipe, option, ran_at):
    pipe.unet = sd_ext.VariantUNet2DConditionModel.from_unet(pipe.unet, **option)
    other, asked = to_image(pipe), {"image": PICTURE, "strength": 0.5, "guidance_scale": 3.0}
    alone = drawn(other, **asked)
    pipe.unet.reset()
    sd_ext.attach(pipe)
    try:
        if ran_at is not None:
            drawn(pipe, guidance_scale=ran_at)
        assert torch.equal(drawn(other, **asked), alone)
    finally:
        sd_ext.detach(pipe)


def test_an_interval_of_one_pipeline_leaves_another_of_its_parts_alone(pipe):
    other = to_image(pipe)
    asked = {"image": PICTURE, "strength": 0.5, "guidance_scale": 3.0}
    alone = drawn(other, **asked)
    drawn(pipe, guidance_scale=5.0)
    with sd_ext.GuidanceInterval(0.0, 0.5, pipe):
        assert torch.equal(drawn(other, **asked), alone)
    with sd_ext.GuidanceInterval(0.0, 0.5, other):
        assert not torch.equal(drawn(other, **asked), alone)


@pytest.mark.parametrize("option", [{"apg_momentum": -0.5}, {"cache_interval": 2}, {"nag_scale": 4.0}])
def test_a_picture_of_one_step_does_not_depend_on_the_one_before(pipe, option):
    pipe.unet = sd_ext.VariantUNet2DConditionModel.from_unet(pipe.unet, **option)
    first = drawn(pipe, 1, guidance_scale=7.5)
    drawn(pipe, 1, guidance_scale=3.0)
    assert torch.equal(drawn(pipe, 1, guidance_scale=7.5), first)


EDM = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}


@pytest.mark.parametrize("ours", [False, True])
def test_networks_that_are_told_the_logarithm_of_sigma(ours):
    """EDM's: intervals in sigma are where they say, large pictures shrink in the first steps, x0 is known."""
    pipe = build_tiny_sdxl_pipeline()
    pipe.scheduler = diffusers.EDMEulerScheduler(**EDM)
    if ours:
        pipe.scheduler = sd_ext.make_scheduler("euler", pipe.scheduler.config)
    guided = []
    with sd_ext.GuidanceInterval(sigma=(0.28, 5.42), pipe=pipe):
        hook = pipe.unet.register_forward_pre_hook(lambda _, args: guided.append(len(args[0]) == 2))
        drawn(pipe, guidance_scale=5.0)
        hook.remove()
    told = [float(torch.exp(4 * t)) for t in pipe.scheduler.timesteps.double()]
    assert guided == [0.28 < sigma <= 5.42 for sigma in told] and len(set(guided)) == 2
    plain = pipe.unet
    exact = drawn(pipe, 4, guidance_scale=5.0)
    pipe.unet = sd_ext.VariantUNet2DConditionModel.from_unet(plain, highres_factor=2.0, highres_until=0.5)
    assert not torch.equal(drawn(pipe, 4, guidance_scale=5.0), exact)
    pipe.unet = sd_ext.VariantUNet2DConditionModel.from_unet(plain, apg_eta=0.0)
    assert not torch.equal(drawn(pipe, 4, guidance_scale=5.0), exact)  # what is projected: `test_noise.py`
