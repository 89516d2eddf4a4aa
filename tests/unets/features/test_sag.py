"""Self-attention guidance: the pictures of Diffusers' pipeline, and its cost."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionSAGPipeline

from sd_ext.unets import VariantUNet2DConditionModel


@pytest.mark.parametrize("guidance", [6.0, 1.0])
@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
def test_the_pictures_are_those_of_diffusers_pipeline(tiny_pipeline, guidance, predicts):
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, prediction_type=predicts)
    tiny_pipeline.scheduler = scheduler
    theirs = StableDiffusionSAGPipeline(**tiny_pipeline.components, requires_safety_checker=False)
    theirs.set_progress_bar_config(disable=True)
    unet = VariantUNet2DConditionModel.from_unet(tiny_pipeline.unet, sag_scale=0.75)
    processors = tiny_pipeline.unet.attn_processors

    def draw(pipe, **options):
        generators = [torch.Generator().manual_seed(i) for i in range(2)]
        given = {"num_inference_steps": 3, "guidance_scale": guidance, "output_type": "latent", **options}
        return pipe(["a", "b c"], generator=generators, **given).images

    plain = draw(tiny_pipeline)
    expected = draw(theirs, sag_scale=0.75)
    tiny_pipeline.unet.set_attn_processor(processors)
    tiny_pipeline.register_modules(unet=unet)
    batches: list[int] = []
    unet.conv_in.register_forward_hook(lambda module, args, output: batches.append(len(output)))
    got = draw(tiny_pipeline)
    assert batches == ([4, 2] if guidance > 1 else [2, 2]) * 3
    assert (expected - plain).abs().max() > 1e-3
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
