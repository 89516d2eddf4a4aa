"""Samplers in the pipelines of flow models: right, in as many calls as asked, and Diffusers' own where they agree."""

from __future__ import annotations

import diffusers
import pytest
import torch

import sd_ext

from ..over import INVERSE, ONE_FIELD, over
from .pipelines import PIPELINES, built

FEW = ["auto", "euler", "dpm++ 2m", "flow heun", "dpm++ sde", "lcm", "restart"]


@pytest.fixture(scope="module")
def configs():
    """The scheduler config of each model."""
    return {name: built(name).scheduler.config for name in PIPELINES}


@over("name", FEW, full=[name for name in ONE_FIELD if name not in INVERSE])
@over("model", PIPELINES)
def test_every_sampler_finds_the_one_picture_in_as_many_calls_as_asked(model, name, configs):
    flow = PIPELINES[model]
    end = flow.run(built(model), sd_ext.make_scheduler(name, configs[model]), 5)
    assert len(flow.calls) == 5
    torch.testing.assert_close(end, torch.ones_like(end), atol=2e-3, rtol=0)


@over("model", [name for name in PIPELINES if name != "Wan"])
@over("name", ["euler", "ddim", "flow euler"])
def test_eulers_method_is_diffusers_in_the_pipeline(model, name, configs):
    """The same timesteps to the transformer, and the same latents at each of them."""
    seen = []
    for scheduler in (
        diffusers.FlowMatchEulerDiscreteScheduler.from_config(configs[model]),
        sd_ext.make_scheduler(name, configs[model]),
    ):
        flow, steps = PIPELINES[model], []
        flow.watch = lambda x, t, steps=steps: steps.append((x.clone(), t.clone()))
        flow.run(built(model), scheduler, 5)
        seen.append(steps)
    for (x, t), (y, u) in zip(*seen, strict=True):
        torch.testing.assert_close(u.float(), t.float(), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(y, x, atol=1e-4, rtol=1e-4)


@over("name", FEW[1:4])
def test_image_to_image_starts_at_its_own_level(name, configs):
    """scale_noise of the pipeline's first timestep, and the rest of the calls."""
    pipe, flow = built("SD3"), PIPELINES["SD3"]
    image = diffusers.StableDiffusion3Img2ImgPipeline(**pipe.components)
    scheduler = sd_ext.make_scheduler(name, configs["SD3"])
    arguments = {**flow.arguments, "image": torch.rand(1, 3, 32, 32), "strength": 0.6}
    end = type(flow)(flow.build, arguments).run(image, scheduler, 5)
    torch.testing.assert_close(end, torch.ones_like(end), atol=2e-3, rtol=0)
