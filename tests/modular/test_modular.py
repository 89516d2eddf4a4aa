"""Modular pipelines: pictures of the standard ones, what the loop tells, guiders, folders that load by themselves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    ModularPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from diffusers.guiders import (
    AdaptiveProjectedGuidance,
    ClassifierFreeGuidance,
    PerturbedAttentionGuidance,
    TangentialClassifierFreeGuidance,
)
from diffusers.hooks import LayerSkipConfig
from PIL import Image

import sd_ext
from sd_ext import modular
from sd_ext.attaching import PIPELINES
from sd_ext.board import BOARD
from sd_ext.errors import InputError

from ..conftest import build_tiny_sdxl_pipeline
from ..unets.inside.test_views import ip_adapter

SCALE = 6.0
PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
MID = "mid_block.attentions.0.transformer_blocks"


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def of_sd(pipe: Any, guider: Any = None, **parts: Any) -> Any:
    """A Modular pipeline of the components of a standard one."""
    made = modular.StableDiffusionBlocks().init_pipeline()
    made.update_components(**{name: getattr(pipe, name) for name in PARTS}, **parts)
    made.update_components(guider=guider or ClassifierFreeGuidance(SCALE))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def sdxl() -> Any:
    return build_tiny_sdxl_pipeline()


def of_sdxl(pipe: Any, guider: Any = None, blocks: Any = modular.StableDiffusionXLBlocks) -> Any:
    made = blocks().init_pipeline()
    names = (*PARTS, "text_encoder_2", "tokenizer_2")
    made.update_components(**{name: getattr(pipe, name) for name in names})
    made.update_components(guider=guider or ClassifierFreeGuidance(SCALE))
    made.set_progress_bar_config(disable=True)
    return made


def drawn(pipe: Any, **given: Any) -> torch.Tensor:
    """Latents of two prompts."""
    given = {"prompt": ["a", "b c"], "num_inference_steps": 4, "output_type": "latent", **given}
    given["generator"] = [torch.Generator().manual_seed(i) for i in range(2)]
    if isinstance(pipe, ModularPipeline):
        return pipe(**given, output="images")
    return pipe(**{"guidance_scale": SCALE, **given}).images


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, atol=3e-4, rtol=3e-4)


# ---- Stable Diffusion 1.x and 2.x ------------------------------------------------------------------------------------


def test_text_to_image_as_by_the_standard_pipeline(tiny_pipeline):
    pipe = of_sd(tiny_pipeline)
    same(
        drawn(pipe, **sd_ext.encode_prompt(pipe, ["a (b:1.4)", "c"], ["", ""]), prompt=None),
        drawn(tiny_pipeline, **sd_ext.encode_prompt(tiny_pipeline, ["a (b:1.4)", "c"], ["", ""]), prompt=None),
    )
    for given in ({}, {"negative_prompt": ["c", "a"], "height": 48, "width": 64}):
        same(drawn(pipe, **given), drawn(tiny_pipeline, **given))
    states = tiny_pipeline.encode_prompt("b", "cpu", 1, True)
    two = {"prompt_embeds": states[0], "negative_prompt_embeds": states[1], "prompt": None, "num_images_per_prompt": 2}
    same(drawn(pipe, **two), drawn(tiny_pipeline, **two))
    pictures = pipe(prompt="a", num_inference_steps=2, generator=generator(), output_type="np", output="images")
    plain = tiny_pipeline("a", num_inference_steps=2, generator=generator(), output_type="np", guidance_scale=SCALE)
    same(torch.tensor(pictures), torch.tensor(plain.images))


def test_pictures_and_masks_as_by_the_standard_pipelines(tiny_pipeline):
    picture = Image.linear_gradient("L").convert("RGB").resize((64, 64))
    given = {"image": picture, "strength": 0.6, "prompt": "a", "num_inference_steps": 5, "output_type": "latent"}
    parts = {**tiny_pipeline.components, "requires_safety_checker": False}
    plain = StableDiffusionImg2ImgPipeline(**parts)
    plain.set_progress_bar_config(disable=True)
    pipe = of_sd(tiny_pipeline)
    expected = plain(**given, generator=generator(), guidance_scale=SCALE).images
    same(pipe(**given, generator=generator(), output="images"), expected)

    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    given |= {"mask_image": mask, "strength": 1.0, "height": 64, "width": 64}
    given["latents"] = torch.randn(1, 4, 8, 8, generator=generator())
    vae = copy.deepcopy(tiny_pipeline.vae)  # that draws nothing at random, which is drawn in another order there
    with torch.no_grad():
        vae.quant_conv.weight[4:], vae.quant_conv.bias[4:] = 0, -30
    unet = UNet2DConditionModel.from_config(tiny_pipeline.unet.config, in_channels=9).eval()
    for network in (unet, tiny_pipeline.unet):
        inpainting = StableDiffusionInpaintPipeline(**{**parts, "unet": network, "vae": vae})
        inpainting.set_progress_bar_config(disable=True)
        pipe.update_components(unet=network, vae=vae)
        expected = inpainting(**given, generator=generator(), guidance_scale=SCALE).images
        same(pipe(**given, generator=generator(), output="images"), expected)


def test_a_controlnet_steers(tiny_pipeline):
    torch.manual_seed(0)
    control = ControlNetModel.from_unet(tiny_pipeline.unet, conditioning_embedding_out_channels=(8, 8, 8, 8)).eval()
    for module in control.controlnet_down_blocks:
        torch.nn.init.normal_(module.weight, std=0.3)
    plain = StableDiffusionControlNetPipeline(
        **tiny_pipeline.components, controlnet=control, requires_safety_checker=False
    )
    plain.set_progress_bar_config(disable=True)
    pipe = of_sd(tiny_pipeline, controlnet=control)
    picture = Image.linear_gradient("L").convert("RGB").resize((64, 64))
    given = {"prompt": "a", "num_inference_steps": 3, "output_type": "latent", "controlnet_conditioning_scale": 0.7}
    got = pipe(**given, control_image=picture, generator=generator(), output="images")
    same(got, plain(**given, image=picture, generator=generator(), guidance_scale=SCALE).images)
    assert (got - drawn(of_sd(tiny_pipeline))[:1]).abs().max() > 1e-2


def test_pictures_of_an_ip_adapter_are_seen(tiny_pipeline):
    unet = copy.deepcopy(tiny_pipeline.unet)
    ip_adapter(unet, width=32)
    tiny_pipeline.register_modules(unet=unet)
    embeds = torch.randn(1, 1, 6, generator=generator())
    got = drawn(of_sd(tiny_pipeline), ip_adapter_embeds=[embeds], negative_ip_adapter_embeds=[torch.zeros(1, 1, 6)])
    both = torch.cat([torch.zeros(1, 1, 6), embeds])
    same(got, drawn(tiny_pipeline, ip_adapter_image_embeds=[both]))


def test_a_network_distilled_with_guidance_is_told_its_strength(tiny_pipeline):
    unet = UNet2DConditionModel.from_config(tiny_pipeline.unet.config, time_cond_proj_dim=8).eval()
    seen: list[Any] = []
    unet.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["timestep_cond"]), with_kwargs=True)
    pipe = of_sd(tiny_pipeline)
    pipe.update_components(unet=unet)
    drawn(pipe)
    want = tiny_pipeline.get_guidance_scale_embedding(torch.tensor(SCALE - 1).repeat(2), embedding_dim=8)
    assert len(seen) == 4  # without a half for no prompt
    torch.testing.assert_close(seen[0], want)


def test_what_cannot_be_is_refused(tiny_pipeline, sdxl, said):
    pipe = of_sd(tiny_pipeline)
    with pytest.raises(InputError, match="a prompt or prompt_embeds, and not both"):
        drawn(pipe, prompt=None)
    pipe.update_components(guider=ClassifierFreeGuidance(SCALE, enabled=False))
    with pytest.raises(InputError, match="a guidance_scale of 1 for none"):
        drawn(pipe)
    pipe.update_components(guider=ClassifierFreeGuidance(1.0))
    drawn(pipe, negative_prompt=["c", "c"])
    assert said == ["the negative prompt is not used: ClassifierFreeGuidance does not guide by one now"]
    pipe.update_components(unet=sdxl.unet)
    with pytest.raises(InputError, match="use StableDiffusionXLBlocks"):
        drawn(pipe)
    for channels, message in ((9, "give the pipeline an image and a mask_image"), (8, "takes 8 channels")):
        pipe.update_components(unet=UNet2DConditionModel.from_config(tiny_pipeline.unet.config, in_channels=channels))
        with pytest.raises(InputError, match=message):
            drawn(pipe)
    with pytest.raises(InputError, match="its own save_pretrained"):
        modular.save(tiny_pipeline, "nowhere")


def test_diffusers_finds_the_blocks_by_itself(tiny_pipeline_dir):
    pipe = ModularPipeline.from_pretrained(str(tiny_pipeline_dir))
    assert type(pipe) is modular.StableDiffusionModularPipeline
    assert type(pipe.blocks) is modular.StableDiffusionBlocks
    assert {"text2image", "image2image", "inpainting"} <= set(pipe.blocks.available_workflows)
    only = ModularPipeline.from_pretrained(str(tiny_pipeline_dir), workflow="text2image")
    assert "image_encoder" not in only.component_names
    pipe.load_components(["unet", "vae"])
    assert pipe.default_width == 64


@pytest.mark.slow
def test_folders_load_by_themselves(tiny_pipeline, tmp_path, fresh):
    """In a process that has not imported this package, by the code in the folder alone."""
    tiny_pipeline.register_modules(unet=sd_ext.CachedUNet2DConditionModel.from_unet(tiny_pipeline.unet))
    pipe = of_sd(tiny_pipeline)
    pipe.update_components(scheduler=sd_ext.make_scheduler("euler cfg++", tiny_pipeline.scheduler.config))
    modular.save(pipe, tmp_path / "folder")
    wanted = drawn(pipe)
    code = """
import sys, torch
from diffusers import ModularPipeline
pipe = ModularPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
names = ["unet", "vae", "text_encoder", "tokenizer", "scheduler"]
pipe.load_components(names)
pipe.guider.register_to_config(guidance_scale=6.0)
pipe.guider.guidance_scale = 6.0
generators = [torch.Generator().manual_seed(i) for i in range(2)]
got = pipe(prompt=["a", "b c"], num_inference_steps=4, output_type="latent", generator=generators, output="images")
torch.save(got, sys.argv[2])
print(type(pipe.unet).__name__, type(pipe).__name__)
"""
    told = fresh(code, tmp_path / "folder", tmp_path / "got.pt")
    assert told.returncode == 0, told.stderr
    assert told.stdout.split()[-2:] == ["CachedUNet2DConditionModel", "StableDiffusionModularPipeline"]
    assert torch.equal(torch.load(tmp_path / "got.pt"), wanted)


# ---- what the loop tells ---------------------------------------------------------------------------------------------


def test_samplers_of_two_fields_find_both_halves(tiny_pipeline, sdxl):
    """With nothing attached, and nothing attached afterwards."""
    for standard, make in ((tiny_pipeline, of_sd), (sdxl, of_sdxl)):
        before = standard.scheduler
        standard.scheduler = sd_ext.make_scheduler("euler cfg++", before.config)
        sd_ext.attach(standard)
        want = drawn(standard, guidance_scale=1.5)
        sd_ext.detach(standard)
        pipe = make(standard, ClassifierFreeGuidance(1.5))
        same(drawn(pipe), want)
        pipe.scheduler = sd_ext.make_scheduler("euler", before.config, guidance_schedule="linear")
        assert torch.isfinite(drawn(pipe)).all()
        assert not PIPELINES
        standard.scheduler = before
        BOARD.notes.clear()


def test_a_network_knows_which_half_it_is_called_for(tiny_pipeline, sdxl):
    """NAG leads the conditional half away, and asks the pipeline for the words."""
    for standard, make in ((tiny_pipeline, of_sd), (sdxl, of_sdxl)):
        plain = standard.unet
        standard.register_modules(
            unet=sd_ext.VariantUNet2DConditionModel.from_unet(plain, nag_scale=4.0, nag_prompt="c")
        )
        same(drawn(make(standard)), drawn(standard))
        standard.register_modules(unet=plain)


def test_pipelines_that_take_turns_do_not_mix_their_caches(tiny_pipeline):
    """In one thread, with one U-Net and one tensor of timesteps: a step of the other in the middle of a run."""
    unet = sd_ext.CachedUNet2DConditionModel.from_unet(tiny_pipeline.unet, cache_interval=2)
    tiny_pipeline.register_modules(unet=unet)
    other, ran = of_sd(tiny_pipeline), []
    other.update_components(scheduler=sd_ext.make_scheduler("euler", tiny_pipeline.scheduler.config))

    class Interrupted(ClassifierFreeGuidance):
        def set_state(self, step, **told):
            if step == 1 and self.stop_at_one:
                ran.append(len(drawn(other)))
            super().set_state(step=step, **told)

    guider = Interrupted(SCALE)
    one = of_sd(tiny_pipeline, guider)
    got = []
    for guider.stop_at_one in (False, True):
        got.append(drawn(one))
    assert torch.equal(*got)
    assert ran == [2]


# ---- Diffusers' own Modular pipelines --------------------------------------------------------------------------------


def test_our_schedulers_and_networks_work_in_diffusers_blocks_as_they_are(sdxl):
    from diffusers import StableDiffusionXLAutoBlocks

    pipe = of_sdxl(sdxl, blocks=StableDiffusionXLAutoBlocks)
    standard = sdxl.scheduler
    for name in ("dpm++ 2m karras", "unipc", "euler a", "lcm"):
        scheduler = sd_ext.make_scheduler(name, standard.config)
        sdxl.scheduler = scheduler
        pipe.update_components(scheduler=scheduler)
        same(drawn(pipe), drawn(sdxl))
    sdxl.scheduler = standard
    pipe.update_components(scheduler=standard)
    unet = sd_ext.VariantUNet2DConditionModel.from_unet(sdxl.unet, cache_interval=2, token_merge_ratio=0.3)
    plain = sdxl.unet
    pipe.update_components(unet=unet)
    got = drawn(pipe)
    sdxl.register_modules(unet=unet)
    same(got, drawn(sdxl))
    sdxl.register_modules(unet=plain)
    assert (got - drawn(sdxl)).abs().max() > 1e-3


@pytest.mark.parametrize("blocks", ["Diffusers", "ours"])
def test_guiders_draw_the_same_through_the_adapter(sdxl, blocks):
    from diffusers import StableDiffusionXLAutoBlocks

    made = StableDiffusionXLAutoBlocks if blocks == "Diffusers" else modular.StableDiffusionXLBlocks
    worse = LayerSkipConfig(indices=[0], fqn=MID, skip_attention=False, skip_attention_scores=True, skip_ff=False)
    for build in (
        lambda: ClassifierFreeGuidance(SCALE, stop=0.75),
        lambda: AdaptiveProjectedGuidance(SCALE, -0.5, 2.0, eta=0.0),
        lambda: TangentialClassifierFreeGuidance(SCALE),
        lambda: PerturbedAttentionGuidance(SCALE, 3.0, perturbed_guidance_config=worse),
    ):
        got = drawn(of_sdxl(sdxl, build(), made))
        with sd_ext.guided_by(sdxl, build()):
            same(got, drawn(sdxl, guidance_scale=1.5))
