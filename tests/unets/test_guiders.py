"""Diffusers' guiders in standard pipelines: their pictures, their calls, and what is refused."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPAGPipeline, StableDiffusionXLPipeline
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    PerturbedAttentionGuidance,
    SkipLayerGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.hooks import LayerSkipConfig

import sd_ext
from sd_ext.board import BOARD
from sd_ext.errors import InputError
from sd_ext.unets import VariantUNet2DConditionModel
from sd_ext.unets.inside import say

MID = "mid_block.attentions.0.transformer_blocks"


def latents(pipe, **options):
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    given = {"num_inference_steps": 4, "guidance_scale": 1.5, "output_type": "latent", **options}
    return pipe(["a", "b c"], generator=generators, **given).images


def same(one, other):
    torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-4)


def calls(unet):
    batches: list[int] = []
    unet.conv_in.register_forward_hook(lambda module, args, output: batches.append(len(output)))
    return batches


class OfAnotherKind(ClassifierFreeGuidance):
    """Needs what this network does not predict."""

    def forward(self, pred_cond, pred_uncond, pred_of_sound=None):
        raise ValueError("a prediction of sound is missing")


def test_the_guiders_scale_counts_and_not_the_pipelines(tiny_pipeline, tiny_sdxl_dir):
    sdxl = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl_dir, add_watermarker=False)
    sdxl.set_progress_bar_config(disable=True)
    for pipe in (tiny_pipeline, sdxl):
        with sd_ext.guided_by(pipe, ClassifierFreeGuidance(6.0)):
            got = latents(pipe)
        same(got, latents(pipe, guidance_scale=6.0))
        assert (got - latents(pipe)).abs().max() > 1e-2


def test_guiders_draw_what_our_options_draw(tiny_pipeline):
    """Two ways to the same guidance: Diffusers' guiders through the adapter, and features within the network."""
    plain = tiny_pipeline.unet
    config = LayerSkipConfig(indices=[0], fqn=MID)
    worse = LayerSkipConfig(indices=[0], fqn=MID, skip_attention=False, skip_attention_scores=True, skip_ff=False)
    inside = {"perturbed_guidance_start": 0.0, "perturbed_guidance_stop": 0.75, "perturbed_guidance_config": worse}
    for guider, options in (
        (
            AdaptiveProjectedGuidance(5.0, -0.5, 2.0, eta=0.0, use_original_formulation=True),
            {"apg_eta": 0.0, "apg_momentum": -0.5, "apg_norm": 2.0, "apg_of": "output"},
        ),
        (
            SkipLayerGuidance(6.0, 2.8, 0.0, 0.75, skip_layer_config=config),
            {"slg_scale": 2.8, "slg_interval": [0.25, 0.75]},  # Diffusers begins after its start
        ),
        (PerturbedAttentionGuidance(6.0, 3.0, **inside), {"pag_scale": 3.0, "pag_interval": [0.25, 0.75]}),
    ):
        with sd_ext.guided_by(tiny_pipeline, guider):
            got = latents(tiny_pipeline)
        tiny_pipeline.register_modules(unet=VariantUNet2DConditionModel.from_unet(plain, **options))
        same(got, latents(tiny_pipeline, guidance_scale=6.0))
        tiny_pipeline.register_modules(unet=plain)
        assert (got - latents(tiny_pipeline, guidance_scale=6.0)).abs().max() > 1e-3


def test_only_what_the_guider_needs_is_computed(tiny_pipeline):
    unet = VariantUNet2DConditionModel.from_unet(tiny_pipeline.unet)
    tiny_pipeline.register_modules(unet=unet)
    batches = calls(unet)
    with sd_ext.guided_by(tiny_pipeline, ClassifierFreeGuidance(6.0, stop=0.5)):
        latents(tiny_pipeline)
        assert batches == [2] * 6
    latents(tiny_pipeline)
    assert batches[6:] == [4] * 4


def test_features_know_which_half_it_is(tiny_pipeline, caplog):
    """NAG leads the conditional half away; what needs both halves in one batch says so."""
    say.forget()
    unet = VariantUNet2DConditionModel.from_unet(tiny_pipeline.unet, nag_scale=4.0, nag_prompt="c", cfg_rescale=0.5)
    tiny_pipeline.register_modules(unet=unet)
    with sd_ext.guided_by(tiny_pipeline, ClassifierFreeGuidance(6.0)):
        got = latents(tiny_pipeline)
    assert "cfg_rescale changes nothing: each half of guidance has a call of its own" in caplog.text
    unet.set_options(cfg_rescale=0.0)
    same(got, latents(tiny_pipeline, guidance_scale=6.0))


def test_samplers_of_two_fields_find_the_halves(tiny_pipeline):
    plain = tiny_pipeline.scheduler
    tiny_pipeline.scheduler = sd_ext.make_scheduler("euler cfg++", plain.config)
    with sd_ext.guided_by(tiny_pipeline, ClassifierFreeGuidance(1.5)):
        got = latents(tiny_pipeline)
    sd_ext.attach(tiny_pipeline)
    same(got, latents(tiny_pipeline))
    sd_ext.detach(tiny_pipeline)
    BOARD.notes.clear()


def test_what_cannot_be_is_refused(tiny_pipeline):
    guider = TangentialClassifierFreeGuidance(6.0)
    with sd_ext.guided_by(tiny_pipeline, guider):
        assert torch.isfinite(latents(tiny_pipeline)).all()
        with pytest.raises(InputError, match="without guidance"):
            latents(tiny_pipeline, guidance_scale=1.0)
    with pytest.raises(InputError, match="float is no guider"), sd_ext.guided_by(tiny_pipeline, 7.5):
        pass
    with pytest.raises(InputError, match="not a guided pipeline"), sd_ext.guided_by(tiny_pipeline.unet, guider):
        pass
    three = StableDiffusionPAGPipeline(**tiny_pipeline.components, requires_safety_checker=False)
    with pytest.raises(InputError, match="three branches"), sd_ext.guided_by(three, guider):
        pass
    with (
        sd_ext.guided_by(tiny_pipeline, OfAnotherKind(6.0)),
        pytest.raises(InputError, match=r"OfAnotherKind cannot guide StableDiffusionPipeline .*of sound"),
    ):
        latents(tiny_pipeline)
    assert not tiny_pipeline.unet._forward_pre_hooks
