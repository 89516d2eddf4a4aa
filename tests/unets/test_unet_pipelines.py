"""Our U-Nets in Diffusers' pipelines: exact where neutral, repeatable and really reusing where not."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from sd_ext import CachedUNet2DConditionModel, make_scheduler
from sd_ext.unets.variant import OPTIONS

from ..few import few
from ..zoo import controlnet, pag, sdxl, stable_diffusion
from ..zoo.cell import quiet, result
from ..zoo.entry import Entry
from .features.test_cache import whole_passes
from .inside.test_views import ip_adapter

STEPS = 5
EXACT = ("Adapter", "ControlNetXS")
"""What changes the network between its blocks: nothing can be reused."""
NAMES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionInpaintPipeline (9 channels)",
    "StableDiffusionInpaintPipeline (4 channels)",
    "StableDiffusionInstructPix2PixPipeline",
    "StableDiffusionControlNetPipeline",
    "StableDiffusionControlNetImg2ImgPipeline",
    "StableDiffusionControlNetInpaintPipeline",
    "StableDiffusionAdapterPipeline",
    "StableDiffusionPAGPipeline",
    "StableDiffusionXLPipeline",
    "StableDiffusionXLImg2ImgPipeline",
    "StableDiffusionXLImg2ImgPipeline (refiner)",
    "StableDiffusionXLInpaintPipeline (9 channels)",
    "StableDiffusionXLControlNetPipeline",
    "StableDiffusionXLAdapterPipeline",
)
ENTRIES = [e for zoo in (stable_diffusion, sdxl, controlnet, pag) for e in zoo.ENTRIES if e.name in NAMES]


def test_every_pipeline_named_is_there():
    assert sorted(entry.name for entry in ENTRIES) == sorted(NAMES)


@pytest.mark.parametrize("entry", few(ENTRIES, 3), ids=lambda entry: entry.name)
def test_in_a_pipeline(entry: Entry):
    with quiet():
        pipe = entry.build()
        exact = result(entry, pipe, STEPS)
        unet = CachedUNet2DConditionModel.from_unet(pipe.unet, cache_interval=2)
        pipe.register_modules(unet=unet)
        with whole_passes(unet) as passes:
            reused = result(entry, pipe, STEPS)
        first = len(passes)
        assert torch.equal(result(entry, pipe, STEPS), reused), "a second picture is as a first one"
        calls = entry.expected(STEPS)
        adapter = any(name in entry.name for name in EXACT)
        assert first == (calls if adapter else -(-calls // 2))
        assert torch.equal(reused, exact) == adapter
        unet.set_options(cache_interval=1)
        assert torch.equal(result(entry, pipe, STEPS), exact)


@pytest.mark.parametrize("sampler", few(["restart", "dpm++ 2m karras", "heun", "euler a", "unipc"], 4))
def test_with_any_sampler(sampler, tiny_pipeline):
    """One step of the pipeline's timesteps is one step of the cache, whatever the sampler's order."""
    unet = tiny_pipeline.unet = CachedUNet2DConditionModel.from_unet(tiny_pipeline.unet, cache_interval=3)
    tiny_pipeline.scheduler = make_scheduler(sampler, tiny_pipeline.scheduler.config)
    pictures = []
    for _ in range(2):
        with whole_passes(unet) as passes:
            pictures.append(picture(tiny_pipeline, num_inference_steps=6))
        assert len(passes) == 2 if sampler != "restart" else len(passes) >= 2
    assert torch.equal(*pictures)


@pytest.mark.parametrize("name", few(["HeunDiscreteScheduler", "PNDMScheduler", "KDPM2DiscreteScheduler"], 3))
def test_with_diffusers_samplers_of_several_calls(name, tiny_pipeline):
    import diffusers

    unet = tiny_pipeline.unet = CachedUNet2DConditionModel.from_unet(tiny_pipeline.unet, cache_interval=3)
    tiny_pipeline.scheduler = getattr(diffusers, name).from_config(tiny_pipeline.scheduler.config)
    with whole_passes(unet) as passes:
        one = picture(tiny_pipeline, num_inference_steps=5)
    calls = len(tiny_pipeline.scheduler.timesteps)
    assert calls > 5
    assert len(passes) == -(-calls // 3)
    assert torch.equal(picture(tiny_pipeline, num_inference_steps=5), one)


def picture(pipe: Any, **options: Any) -> torch.Tensor:
    return pipe("a b", generator=torch.Generator().manual_seed(0), output_type="latent", **options).images


DRAW = """
import sys, torch, sd_ext
from diffusers import StableDiffusionPipeline
pipe = StableDiffusionPipeline.from_pretrained(sd_ext.pretrained_path())
pipe.unet = sd_ext.CachedUNet2DConditionModel.from_unet(pipe.unet, attention_gate=4, token_merge_ratio=0.25)
for out in sys.argv[1:]:
    seeded = torch.Generator().manual_seed(int(out[-1]))
    torch.save(pipe("red apple", num_inference_steps=7, generator=seeded, output_type="pt").images, out)
"""


@pytest.mark.slow
def test_two_pictures_in_a_row_are_those_of_fresh_processes(tmp_path):
    runs = [["row1", "row2"], ["fresh1"], ["fresh2"]]
    for names in runs:
        subprocess.run([sys.executable, "-c", DRAW, *(str(tmp_path / name) for name in names)], check=True)
    drawn = {name: torch.load(tmp_path / name, weights_only=True) for names in runs for name in names}
    assert torch.equal(drawn["row1"], drawn["fresh1"])
    assert torch.equal(drawn["row2"], drawn["fresh2"])
    assert not torch.equal(drawn["row1"], drawn["row2"])


def test_two_pipelines_around_one_unet(tiny_pipeline):
    from diffusers import StableDiffusionImg2ImgPipeline

    unet = tiny_pipeline.unet = CachedUNet2DConditionModel.from_unet(tiny_pipeline.unet, cache_interval=2)
    other = StableDiffusionImg2ImgPipeline(**tiny_pipeline.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    alone = picture(tiny_pipeline, num_inference_steps=6)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def interrupt(pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        scheduler = tiny_pipeline.scheduler
        other.scheduler = type(scheduler).from_config(scheduler.config)
        with unet.cache_context("other"):
            picture(other, image=image, num_inference_steps=4, strength=0.5)
        return values

    assert torch.equal(picture(tiny_pipeline, num_inference_steps=6, callback_on_step_end=interrupt), alone)


def test_ip_adapter_survives_changes_of_options(tiny_pipeline):
    unet = CachedUNet2DConditionModel.from_unet(tiny_pipeline.unet, cache_interval=2)
    sample, text = torch.ones(2, 4, 8, 8), torch.ones(2, 5, 32)
    extra = ip_adapter(unet, width=32)
    with torch.no_grad():
        before = unet(sample, 500, text, **extra).sample
        unet.set_options(cache_interval=3)
        assert unet.config.encoder_hid_dim_type == "ip_image_proj"
        assert torch.equal(unet(sample, 500, text, **extra).sample, before)
        shared = CachedUNet2DConditionModel.from_unet(unet, **OPTIONS)
        assert torch.equal(shared(sample, 500, text, **extra).sample, before)
