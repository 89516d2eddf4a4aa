"""The guidance interval: which half is computed when, in which pipelines, and that nothing else changes."""

from __future__ import annotations

import contextlib
import threading

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sd_ext
from sd_ext.errors import InputError
from sd_ext.unets import VariantUNet2DConditionModel
from sd_ext.unets.attention.processors import _layers
from sd_ext.unets.guidance_interval import GuidanceInterval
from sd_ext.unets.inside import say

from .tiny import build

STEPS = 5


def draw(pipe, interval=None, callback=None, **options):
    generator = [torch.Generator().manual_seed(i) for i in range(2)]
    given = {
        "num_inference_steps": STEPS,
        "output_type": "np",
        "guidance_scale": 5.0,
        "generator": generator,
        **options,
    }
    with interval or contextlib.nullcontext():
        return pipe(["a", "b c"], callback_on_step_end=callback, **given).images


@pytest.fixture
def batches(tiny_pipeline):
    """Batch sizes that the tiny pipeline's U-Net has computed."""
    seen: list[int] = []
    handle = tiny_pipeline.unet.conv_in.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    yield seen
    handle.remove()
    assert not tiny_pipeline.unet._forward_hooks
    assert not tiny_pipeline.unet._forward_pre_hooks


def by_hand(pipe, guided):
    """The loop with guidance in the steps listed, and the conditional prediction alone in the others."""
    states, negative = pipe.encode_prompt(["a", "b c"], "cpu", 1, True)
    latents = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2)])
    pipe.scheduler.set_timesteps(STEPS)
    latents = latents * pipe.scheduler.init_noise_sigma
    for i, t in enumerate(pipe.scheduler.timesteps):
        x = pipe.scheduler.scale_model_input(latents, t)
        with torch.no_grad():
            noise = pipe.unet(x, t, states).sample
            if i in guided:
                u = pipe.unet(x, t, negative).sample
                noise = u + 5.0 * (noise - u)
        latents = pipe.scheduler.step(noise, t, latents).prev_sample
    with torch.no_grad():
        image = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    return pipe.image_processor.postprocess(image, output_type="np")


@pytest.mark.parametrize("start, stop", [(0.0, 1.0), (0.4, 0.8), (0.0, 0.5), (0.2, 1.0), (0.99, 1.0)])
def test_half_the_batch_is_computed_outside(tiny_pipeline, batches, start, stop):
    guided = [i for i in range(STEPS) if start <= i / STEPS < stop]
    got = draw(tiny_pipeline, GuidanceInterval(start, stop, tiny_pipeline))
    assert batches == [4 if i in guided else 2 for i in range(STEPS)]
    np.testing.assert_allclose(got, by_hand(tiny_pipeline, guided), atol=1e-5)


def test_the_full_interval_changes_no_bit(tiny_pipeline):
    expected = draw(tiny_pipeline)
    assert (draw(tiny_pipeline, GuidanceInterval(pipe=tiny_pipeline)) == expected).all()


@given(start=st.integers(0, 5), length=st.integers(1, 6), steps=st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_any_interval(tiny_parts, start, length, steps):
    pipe, seen = tiny_parts
    seen.clear()
    interval = GuidanceInterval(start / 6, min(1.0, (start + length) / 6), pipe)
    draw(pipe, interval, num_inference_steps=steps, output_type="latent")
    assert seen == [4 if interval.start <= i / steps < interval.stop else 2 for i in range(steps)]


@pytest.fixture(scope="module")
def tiny_parts(tiny_pipeline_dir):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_pipeline_dir)
    pipe.set_progress_bar_config(disable=True)
    seen: list[int] = []
    pipe.unet.conv_in.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    return pipe, seen


def test_one_object_serves_many_calls(tiny_pipeline, batches):
    interval = GuidanceInterval(0.4, 0.8, tiny_pipeline)
    first = draw(tiny_pipeline, interval)
    assert (draw(tiny_pipeline, interval) == first).all()
    assert batches == 2 * [2, 2, 4, 4, 2]
    batches.clear()
    draw(tiny_pipeline)  # nothing lingers
    assert batches == [4] * STEPS


def test_it_holds_for_its_own_thread_and_blocks_do_not_nest(tiny_pipeline, batches):
    with GuidanceInterval(0.4, 0.8, tiny_pipeline):
        thread = threading.Thread(target=lambda: draw(tiny_pipeline))
        thread.start()
        thread.join()
        assert batches == [4] * STEPS
        with pytest.raises(InputError, match="within another"), GuidanceInterval(0.4, 0.8, tiny_pipeline):
            pass
        draw(tiny_pipeline)
    assert batches[STEPS:] == [2, 2, 4, 4, 2]


def test_a_run_that_breaks_off_leaves_no_trace(tiny_pipeline, batches):
    class Stop(Exception):
        pass

    def stop(pipe, step, timestep, tensors):
        raise Stop

    with pytest.raises(Stop):
        draw(tiny_pipeline, GuidanceInterval(0.8, 1.0, tiny_pipeline), stop)
    batches.clear()
    draw(tiny_pipeline)
    assert batches == [4] * STEPS


def test_a_call_that_fails_before_its_first_step_leaves_no_trace(tiny_pipeline, batches):
    draw(tiny_pipeline)
    batches.clear()
    with pytest.raises(ValueError, match="negative_prompt"):
        draw(tiny_pipeline, GuidanceInterval(0.4, 0.8, tiny_pipeline), negative_prompt=["a"] * 3)
    draw(tiny_pipeline)
    assert batches == [4] * STEPS


def test_other_pipelines_with_the_same_network(tiny_pipeline, batches):
    """They may run between two steps, from a callback."""
    scheduler = type(tiny_pipeline.scheduler).from_config(tiny_pipeline.scheduler.config)
    parts = {**tiny_pipeline.components, "scheduler": scheduler}
    other = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    expected = draw(tiny_pipeline, GuidanceInterval(0.4, 0.8, tiny_pipeline))
    alone, seen = draw(other), []

    def interrupt(pipe, step, timestep, tensors):
        seen.append(draw(other))
        return tensors

    batches.clear()
    got = draw(tiny_pipeline, GuidanceInterval(0.4, 0.8, tiny_pipeline), interrupt)
    assert (got == expected).all()
    assert all((picture == alone).all() for picture in seen)
    assert batches[:: STEPS + 1] == [2, 2, 4, 4, 2]


def test_a_compiled_network(tiny_pipeline):
    """Compiled from outside for both sizes of the batch; a small network, since compiling is what takes the time."""
    unet = build(
        "no attention", block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)
    )
    pipe = diffusers.StableDiffusionPipeline(
        **{**tiny_pipeline.components, "unet": unet}, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    expected = draw(pipe, GuidanceInterval(0.4, 0.8, pipe))
    pipe.unet = torch.compile(unet, backend="eager")
    np.testing.assert_allclose(draw(pipe, GuidanceInterval(0.4, 0.8, pipe)), expected, atol=1e-5)


def test_without_guidance_nothing_changes(tiny_pipeline, batches, caplog):
    say.forget()
    expected = draw(tiny_pipeline, guidance_scale=1.0)
    assert (draw(tiny_pipeline, GuidanceInterval(0.4, 0.8, tiny_pipeline), guidance_scale=1.0) == expected).all()
    assert batches == 2 * STEPS * [2]
    assert caplog.text.count("GuidanceInterval changes nothing: this run has no guidance") == 1
    say.forget()
    with GuidanceInterval(0.4, 0.8, tiny_pipeline):  # one picture, a batch that has no halves
        tiny_pipeline("a", num_inference_steps=1, guidance_scale=1.0, output_type="latent")
    assert caplog.text.count("GuidanceInterval changes nothing: this run has no guidance") == 2


def test_several_pictures_for_a_prompt(tiny_pipeline, batches):
    generators = [torch.Generator().manual_seed(i) for i in range(4)]
    draw(tiny_pipeline, GuidanceInterval(0.4, 0.8, tiny_pipeline), num_images_per_prompt=2, generator=generators)
    assert batches == [4, 4, 8, 8, 4]


@pytest.mark.parametrize("name", ["euler", "dpm++ 2m", "heun", "ddim"])
def test_our_samplers(tiny_pipeline, batches, name):
    tiny_pipeline.register_modules(scheduler=sd_ext.make_scheduler(name, tiny_pipeline.scheduler.config))
    got = draw(tiny_pipeline, GuidanceInterval(0.4, 0.8, tiny_pipeline))
    assert batches == [2, 2, 4, 4, 2]
    np.testing.assert_allclose(got, by_hand(tiny_pipeline, (2, 3)), atol=2e-5)


@pytest.mark.parametrize("scheduler", [diffusers.DDIMScheduler, diffusers.EulerDiscreteScheduler])
def test_sigma(tiny_pipeline, batches, scheduler):
    tiny_pipeline.register_modules(scheduler=scheduler.from_config(tiny_pipeline.scheduler.config))
    alphas = tiny_pipeline.scheduler.alphas_cumprod
    tiny_pipeline.scheduler.set_timesteps(STEPS)
    sigmas = [((1 - alphas[int(t)]) / alphas[int(t)]).sqrt().item() for t in tiny_pipeline.scheduler.timesteps]
    low, high = (sigmas[3] * sigmas[4]) ** 0.5, (sigmas[0] * sigmas[1]) ** 0.5
    draw(tiny_pipeline, GuidanceInterval(sigma=(low, high), pipe=tiny_pipeline))
    assert batches == [2, 4, 4, 4, 2]


# ---- pipelines -------------------------------------------------------------------------------------------------------


def image():
    return torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_image_to_image(tiny_pipeline, batches):
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**tiny_pipeline.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    draw(pipe, GuidanceInterval(0.4, 0.8, pipe), image=image(), strength=0.8)
    assert batches == [2, 2, 4, 4]


def test_inpainting(tiny_pipeline, batches):
    pipe = diffusers.StableDiffusionInpaintPipeline(**tiny_pipeline.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    mask = torch.ones(2, 1, 64, 64)
    draw(pipe, GuidanceInterval(0.4, 0.8, pipe), image=image(), mask_image=mask, height=64, width=64, strength=1.0)
    assert batches == [2, 2, 4, 4, 2]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("guess_mode", [False, True])
def test_controlnet(tiny_pipeline, batches, count, guess_mode):
    nets = [diffusers.ControlNetModel.from_unet(tiny_pipeline.unet, conditioning_embedding_out_channels=(4, 4, 4, 4))]
    seen: list[int] = []
    nets[0].conv_in.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    parts = {**tiny_pipeline.components, "controlnet": nets[0] if count == 1 else nets * count}
    pipe = diffusers.StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    given = {"image": image() if count == 1 else [image()] * count, "guess_mode": guess_mode}
    draw(pipe, GuidanceInterval(0.4, 0.8, pipe), **given)
    assert batches == [2, 2, 4, 4, 2]
    assert seen[::count] == ([2] * STEPS if guess_mode else [2, 2, 4, 4, 2])
    expected = draw(pipe, **given)
    assert (draw(pipe, GuidanceInterval(0, 1, pipe), **given) == expected).all()


@pytest.mark.parametrize("kind", ["text", "image"])
def test_sdxl(tiny_sdxl_dir, kind):
    cls = {"text": diffusers.StableDiffusionXLPipeline, "image": diffusers.StableDiffusionXLImg2ImgPipeline}[kind]
    pipe = cls.from_pretrained(tiny_sdxl_dir, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    given = {} if kind == "text" else {"image": image(), "strength": 1.0}
    seen: list[int] = []
    pipe.unet.conv_in.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    draw(pipe, GuidanceInterval(0.4, 0.8, pipe), **given)
    assert seen == [2, 2, 4, 4, 2]


def test_ip_adapter(tiny_pipeline, batches):
    """The network is called with the pictures of both halves in every step; the conditional ones are the second."""
    seen = []
    unet = tiny_pipeline.unet
    layer = unet.mid_block.attentions[0].transformer_blocks[0].attn2
    torch.manual_seed(0)
    own = VariantUNet2DConditionModel.from_unet(unet)  # its processors are its own
    pipe = diffusers.StableDiffusionPipeline(**{**tiny_pipeline.components, "unet": own}, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    weights = {}
    sizes = [module.inner_dim for module in _layers(own).values() if module.is_cross_attention]
    for i, size in enumerate(sizes):
        weights |= {f"{2 * i + 1}.to_{which}_ip.weight": torch.randn(size, layer.cross_attention_dim) for which in "kv"}
    proj = {"proj.weight": torch.randn(128, 16), "proj.bias": torch.zeros(128)}
    norm = {"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)}
    state = {"image_proj": {**proj, **norm}, "ip_adapter": weights}
    own._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
    own.encoder_hid_proj.register_forward_hook(lambda module, args, output: seen.append(args[0][0][:, 0]))
    # One picture for all prompts, repeated for each of them by the pipeline.
    embeds = [torch.randn(2, 1, 16)]
    draw(pipe, GuidanceInterval(0.4, 0.8, pipe), ip_adapter_image_embeds=embeds)
    assert [len(x) for x in seen] == [2, 2, 4, 4, 2]
    assert torch.equal(seen[0], seen[2][2:])


def test_a_variant_with_perturbed_guidance(tiny_pipeline):
    unet = VariantUNet2DConditionModel.from_unet(tiny_pipeline.unet, pag_scale=1.0)
    seen: list[int] = []
    unet.conv_in.register_forward_hook(lambda module, args, output: seen.append(len(output)))
    pipe = diffusers.StableDiffusionPipeline(
        **{**tiny_pipeline.components, "unet": unet}, requires_safety_checker=False
    )
    pipe.set_progress_bar_config(disable=True)
    draw(pipe, GuidanceInterval(0.4, 0.8, pipe))
    assert seen == [2, 2, 2, 2, 4, 2, 4, 2, 2, 2]


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_bad_intervals(tiny_pipeline):
    for ends in ((0.5, 0.5), (0.8, 0.2), (-0.1, 1), (0, 1.1), (float("nan"), 1), ("0", 1)):
        with pytest.raises(InputError, match="start and stop must be"):
            GuidanceInterval(*ends, tiny_pipeline)
    for sigma in ((3, 1), (1,), 5, ("1", 3)):
        with pytest.raises(InputError, match="sigma must be"):
            GuidanceInterval(sigma=sigma, pipe=tiny_pipeline)
    with pytest.raises(InputError, match="not a guided pipeline"):
        GuidanceInterval(0.2, 0.8, torch.nn.Linear(1, 1))
    pag = diffusers.StableDiffusionPAGPipeline(**tiny_pipeline.components, requires_safety_checker=False)
    with pytest.raises(InputError, match="three branches"):
        GuidanceInterval(0.2, 0.8, pag)
    with pytest.raises(InputError, match="give it the pipeline"):
        GuidanceInterval(0.2, 0.8)
    assert repr(GuidanceInterval(0.2, 0.8, tiny_pipeline)) == "GuidanceInterval(0.2, 0.8)"
