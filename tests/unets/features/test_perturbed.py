"""PAG and SEG inside the network: parity with Diffusers' PAG pipelines, the algebra of guidance, the blur."""

from __future__ import annotations

import contextlib
import threading

import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionXLPAGPipeline,
)
from diffusers.guiders import SkipLayerGuidance
from hypothesis import given, settings
from hypothesis import strategies as st

import sd_ext
from sd_ext.errors import InputError
from sd_ext.unets import VariantUNet2DConditionModel
from sd_ext.unets.features.perturbations import find_self_attention
from sd_ext.unets.inside import say
from sd_ext.unets.inside.blur import blur, grid_of
from sd_ext.unets.inside.branches import conditional_half

SEED = {"num_inference_steps": 3, "output_type": "np"}


def picture(pipe, **options):
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    return torch.tensor(pipe(["a", "b c"], generator=generators, **{**SEED, **options}).images)


@pytest.fixture
def variant(tiny_pipeline):
    return VariantUNet2DConditionModel.from_unet(tiny_pipeline.unet)


def with_unet(pipe, unet):
    pipe.register_modules(unet=unet)
    return pipe


class Counted:
    """How often, and with which batches, a network's first layer runs."""

    def __init__(self, unet):
        self.batches: list[int] = []
        unet.conv_in.register_forward_hook(lambda module, args, output: self.batches.append(len(output)))


# ---- parity ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [7.5, 1.0])
@pytest.mark.parametrize("layers", [["mid"], ["down_blocks.0", "mid"]])
def test_the_pictures_are_those_of_diffusers_pipeline(tiny_pipeline, variant, guidance, layers):
    names = {"mid": "mid", "down_blocks.0": "down_blocks.0.attentions"}
    theirs = StableDiffusionPAGPipeline(
        **tiny_pipeline.components,
        requires_safety_checker=False,
        pag_applied_layers=[names[layer] for layer in layers],
    )
    theirs.set_progress_bar_config(disable=True)
    expected = picture(theirs, guidance_scale=guidance, pag_scale=2.0)
    variant.set_options(pag_scale=2.0, pag_layers=layers)
    plain = picture(tiny_pipeline, guidance_scale=guidance)
    got = picture(with_unet(tiny_pipeline, variant), guidance_scale=guidance)
    assert (expected - plain).abs().max() > 1e-3
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_sdxl(tiny_sdxl_dir, guidance):
    theirs = StableDiffusionXLPAGPipeline.from_pretrained(tiny_sdxl_dir, add_watermarker=False)
    theirs.set_progress_bar_config(disable=True)
    expected = picture(theirs, guidance_scale=guidance, pag_scale=2.0)
    from diffusers import StableDiffusionXLPipeline

    ours = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl_dir, add_watermarker=False)
    ours.set_progress_bar_config(disable=True)
    ours.register_modules(unet=VariantUNet2DConditionModel.from_unet(ours.unet, pag_scale=2.0))
    torch.testing.assert_close(picture(ours, guidance_scale=guidance), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_controlnet(tiny_pipeline, variant, guidance):
    torch.manual_seed(0)
    controlnet = ControlNetModel.from_unet(tiny_pipeline.unet, conditioning_embedding_out_channels=(4, 4, 4, 4)).eval()
    for parameter in controlnet.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    parts = {**tiny_pipeline.components, "controlnet": controlnet, "requires_safety_checker": False}
    theirs = StableDiffusionControlNetPAGPipeline(**parts)
    ours = StableDiffusionControlNetPipeline(**parts)
    image = torch.rand(1, 3, 64, 64)
    for pipe in (theirs, ours):
        pipe.set_progress_bar_config(disable=True)
    expected = picture(theirs, guidance_scale=guidance, pag_scale=2.0, image=image)
    variant.set_options(pag_scale=2.0)
    got = picture(with_unet(ours, variant), guidance_scale=guidance, image=image)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_ip_adapter(tiny_pipeline, variant):
    torch.manual_seed(0)
    state = {
        "image_proj": {
            "proj.weight": torch.randn(4 * 32, 16),
            "proj.bias": torch.zeros(4 * 32),
            "norm.weight": torch.ones(32),
            "norm.bias": torch.zeros(32),
        },
        "ip_adapter": {},
    }
    sizes = {"down": 32, "up": 32, "mid": 64}
    cross = [name for name in variant.attn_processors if "attn2" in name]
    for i, name in enumerate(cross):
        for which in ("k", "v"):
            state["ip_adapter"][f"{2 * i + 1}.to_{which}_ip.weight"] = torch.randn(sizes[name.split("_")[0]], 32)
    variant._load_ip_adapter_weights([state], low_cpu_mem_usage=False)
    theirs = StableDiffusionPAGPipeline(
        **{**tiny_pipeline.components, "unet": variant}, requires_safety_checker=False, pag_applied_layers="mid"
    )
    theirs.set_progress_bar_config(disable=True)
    embeds = {"ip_adapter_image_embeds": [torch.randn(2, 1, 16)]}
    expected = picture(theirs, guidance_scale=5.0, pag_scale=2.0, **embeds)
    variant.set_options(pag_scale=2.0)
    got = picture(with_unet(tiny_pipeline, variant), guidance_scale=5.0, **embeds)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_skipped_layers_by_diffusers_guider(tiny_pipeline, variant):
    """Diffusers' guider mixes; the plain network leaves out the blocks by hooks."""
    guider = SkipLayerGuidance(5.0, 2.8, 0.0, 0.75, skip_layer_guidance_layers=[0])
    plain, blocks, step = tiny_pipeline.unet, "mid_block.attentions.0.transformer_blocks", iter(range(4))
    skipped = plain.get_submodule(blocks)[0]

    def mix(unet, args, kwargs, output):
        handle.remove()
        hook = skipped.register_forward_hook(lambda module, args, output: args[0])
        now = conditional_half((args, kwargs), 4)
        guider.set_state(next(step), 4, args[1])
        u, c = output[0].chunk(2)
        worse = plain(*now[0], **now[1])[0] if guider.num_conditions == 3 else None
        hook.remove()
        again()
        return (torch.cat([guider.forward(c, u, worse).pred] * 2),)

    def again():
        nonlocal handle
        handle = plain.register_forward_hook(mix, with_kwargs=True)

    handle = None
    again()
    expected = picture(tiny_pipeline, guidance_scale=5.0, num_inference_steps=4)
    handle.remove()
    variant.set_options(slg_scale=2.8, slg_interval=[0.25, 0.75])  # of its 4 steps 1 and 2
    plainly = picture(tiny_pipeline, guidance_scale=5.0, num_inference_steps=4)
    got = picture(with_unet(tiny_pipeline, variant), guidance_scale=5.0, num_inference_steps=4)
    assert (expected - plainly).abs().max() > 1e-3
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


# ---- algebra ---------------------------------------------------------------------------------------------------------


def test_the_difference_passes_guidance_unchanged(variant):
    x, states = torch.randn(1, 4, 8, 8).repeat(2, 1, 1, 1), torch.randn(2, 3, 32)
    u, c = variant(x, 5, states).sample.chunk(2)
    variant.set_options(pag_scale=3.0, pag_interval=[0.0, 1.0])
    with sd_ext.sampling(variant, guidance_scale=3.0):
        u2, c2 = variant(x, 5, states).sample.chunk(2)
    torch.testing.assert_close(u2 - u, c2 - c)
    alone = variant(x[1:], 5, states[1:]).sample
    torch.testing.assert_close(alone, c2)


@pytest.mark.parametrize("kind", ["pag", "slg"])
def test_cost_is_one_conditional_call(tiny_pipeline, variant, kind):
    seen = Counted(variant)
    variant.set_options(**{f"{kind}_scale": 3.0})
    picture(with_unet(tiny_pipeline, variant), guidance_scale=5.0)
    assert seen.batches == [4, 2] * 3
    variant.set_options(**{f"{kind}_interval": [0.34, 0.9]})
    seen.batches.clear()
    picture(tiny_pipeline, guidance_scale=5.0)
    assert seen.batches == [4, 4, 4, 2]
    variant.set_options(**{f"{kind}_scale": 0.0})
    seen.batches.clear()
    picture(tiny_pipeline, guidance_scale=5.0)
    assert seen.batches == [4] * 3


def test_switched_off_it_is_the_plain_network(tiny_pipeline, variant):
    expected = picture(tiny_pipeline)
    with_unet(tiny_pipeline, variant)
    variant.set_options(pag_scale=2.0, seg_scale=1.0)
    assert (picture(tiny_pipeline) != expected).any()
    variant.set_options(pag_scale=0.0, seg_scale=0)
    assert (picture(tiny_pipeline) == expected).all()


def test_training_and_errors_leave_the_layers_as_they_were(variant):
    x, states = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 32)
    expected = variant(x, 5, states).sample
    variant.set_options(pag_scale=2.0)
    assert torch.equal(variant.train()(x, 5, states).sample, expected)
    variant.eval()
    before = variant.attn_processors

    class Stop(Exception):
        pass

    def stop_second(module, args, count=[]):  # noqa: B006  counts over calls
        count.append(1)
        if len(count) == 2:
            raise Stop

    handle = variant.mid_block.register_forward_pre_hook(stop_second)
    with pytest.raises(Stop):
        variant(x, 5, states)
    handle.remove()
    assert all(before[name] is processor for name, processor in variant.attn_processors.items())


def test_residuals_that_are_taken_out_of_a_list_serve_every_call(variant):
    x, states = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 32)
    adapters = [torch.randn(1, 32, 8, 8), torch.randn(1, 64, 4, 4)]
    given = list(adapters)
    plain = variant(x, 5, states, down_intrablock_additional_residuals=list(adapters)).sample
    variant.set_options(pag_scale=1e-9)
    got = variant(x, 5, states, down_intrablock_additional_residuals=given).sample
    torch.testing.assert_close(got, plain)


def test_three_branches_are_left_exact_and_said(variant, caplog):
    x, states = torch.randn(1, 4, 8, 8).repeat(3, 1, 1, 1), torch.randn(3, 3, 32)
    expected = variant(x, 5, states).sample
    variant.set_options(pag_scale=2.0)
    say.forget()
    with sd_ext.sampling(variant, branches=("conditional", "image", "unconditional")):
        for step in (5, 4):
            got = variant(x, step, states).sample
            assert step == 4 or torch.equal(got, expected)
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_arguments_are_halved_where_they_are_the_batch():
    args = {
        "x": torch.arange(4),
        "t": torch.tensor(7),
        "nested": [torch.arange(4), (torch.arange(3), None)],
        "ip_adapter_masks": [torch.arange(4)],
        "scale": 0.5,
    }
    half = conditional_half(args, 4)
    assert half["x"].tolist() == half["nested"][0].tolist() == [2, 3]
    assert half["t"] == 7
    assert half["nested"][1][0].tolist() == [0, 1, 2]
    assert half["ip_adapter_masks"][0].tolist() == [0, 1, 2, 3]
    assert half["scale"] == 0.5


# ---- the blur --------------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0.05, 200))
@settings(max_examples=20, deadline=None)
def test_the_blur_keeps_what_is_even_and_the_mean(height, width, sigma):
    tokens = torch.randn(2, height * width, 3, dtype=torch.float64)
    out = blur(tokens, sigma, height / width)
    torch.testing.assert_close(out.mean(1), tokens.mean(1))
    torch.testing.assert_close(blur(torch.ones_like(tokens), sigma, height / width), torch.ones_like(tokens))


def test_the_blur_by_its_definition():
    """Each place: the mirrored picture weighed by a Gaussian, cut off at four sigmas."""
    import scipy.ndimage

    picture = torch.randn(7, 5, dtype=torch.float64)
    expected = scipy.ndimage.gaussian_filter(picture.numpy(), 1.3, mode="reflect", radius=6)
    got = blur(picture.reshape(1, 35, 1), 1.3, 7 / 5).reshape(7, 5)
    torch.testing.assert_close(got, torch.tensor(expected))


def test_a_wide_blur_is_the_mean_and_a_narrow_one_nothing():
    tokens = torch.randn(2, 24, 3, dtype=torch.float64)
    for sigma, tolerance in ((20.0, 1e-3), (30.0, 1e-3), (1e4, 1e-12)):
        wide = blur(tokens, sigma, 4 / 6)
        torch.testing.assert_close(wide, blur(tokens, None, 4 / 6), atol=tolerance, rtol=0)
    torch.testing.assert_close(blur(tokens, 1e-3, 4 / 6), tokens)


def test_pag_with_thinned_keys(variant):
    x, states = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 32)
    variant.set_options(token_kv_stride=2)
    thinned = variant(x, 5, states).sample
    variant.set_options(pag_scale=1.0, pag_layers=["down"])
    assert (variant(x, 5, states).sample - thinned).abs().max() > 1e-4


def test_seg_with_no_blur_is_no_guidance(variant):
    x, states = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 32)
    expected = variant(x, 5, states).sample
    variant.set_options(seg_scale=3.0, seg_sigma=1e-3)
    torch.testing.assert_close(variant(x, 5, states).sample, expected, atol=1e-5, rtol=1e-5)
    variant.set_options(seg_sigma=None)
    assert (variant(x, 5, states).sample - expected).abs().max() > 1e-4


@settings(deadline=None)
@given(st.integers(8, 160), st.integers(8, 160), st.integers(0, 3))
def test_the_grid_of_a_level_is_found(height, width, level):
    """Each downsampling halves, rounding up; a grid whose sides do not show in the product is at least as near."""
    h, w = -(-height >> level), -(-width >> level)
    found = grid_of(h * w, height / width)
    assert found[0] * found[1] == h * w
    if height % (1 << level) == width % (1 << level) == 0:
        assert found == (h, w)


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pag_scale": 3.0, "pag_layers": ["up_blocks.0"]}, "no self-attention in 'up_blocks.0'.*up_blocks.1"),
        ({"pag_scale": 3.0, "pag_layers": "mid"}, "list of texts"),
        ({"pag_scale": 3.0, "pag_layers": []}, "list of names"),
        ({"pag_scale": float("nan")}, "pag_scale must be a number"),
        ({"pag_scale": "much"}, "pag_scale must be a number"),
        ({"seg_scale": 1.0, "seg_sigma": 0}, "seg_sigma must be above 0"),
        ({"seg_scale": 1.0, "seg_interval": [0.5, 0.2]}, "start < stop"),
        (
            {"seg_scale": 1.0, "seg_layers": ["down"], "token_merge_ratio": 0.5},
            "seg_layers needs the grid of tokens of down",
        ),
        ({"seg_scale": 1.0, "seg_interval": 0.5}, "a list of 2"),
    ],
)
def test_bad_options(variant, options, message):
    with pytest.raises(InputError, match=message):
        variant.set_options(**options)
    assert variant.describe() == "plain"


def test_names_of_layers(variant):
    count = {name: len(find_self_attention(variant, "x", [name])) for name in ("mid", "up", "down_blocks.0")}
    assert count == {"mid": 1, "up": 2, "down_blocks.0": 1}
    assert len(find_self_attention(variant, "x", ["up", "up_blocks.1.attentions.0"])) == 2


def test_threads_do_not_meet(variant):
    """While one is in its perturbed call another calls the model, in a step without guidance."""
    x, states = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 32)
    expected = variant(x, 900, states).sample
    variant.set_options(pag_scale=2.0, pag_interval=[0.5, 1.0])
    inside, done, main, calls = threading.Event(), threading.Event(), threading.get_ident(), []

    def wait(*_):
        if threading.get_ident() != main:
            calls.append(1)
            if len(calls) == 2:
                inside.set()
                done.wait(0.5)

    variant.mid_block.register_forward_pre_hook(wait)
    thread = threading.Thread(target=lambda: variant(x, 100, states))
    thread.start()
    assert inside.wait(10)
    got = variant(x, 900, states).sample
    done.set()
    thread.join()
    assert torch.equal(got, expected)


@pytest.mark.parametrize("count", [2, 3])
def test_prompts_from_the_same_noise_are_no_guidance(variant, count, caplog):
    """They look like it in the first step; each is drawn as it is alone. That nobody has said so is said once."""
    say.forget()
    x, states = torch.randn(1, 4, 8, 8), torch.randn(count, 3, 32)
    variant.set_options(pag_scale=2.0)
    batched = variant(x.repeat(count, 1, 1, 1), 900, states).sample
    variant.reset()
    torch.testing.assert_close(batched[:1], variant(x, 900, states[:1]).sample, atol=1e-5, rtol=1e-4)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * (count == 2)


@pytest.mark.parametrize("told", [True, False])
def test_a_pipeline_without_guidance_says_so(tiny_pipeline, variant, told):
    """Two prompts from one noise, whose first step looks like guidance."""
    variant.set_options(pag_scale=3.0)
    pipe, x = with_unet(tiny_pipeline, variant), torch.randn(1, 4, 8, 8)
    given = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent"}
    with sd_ext.sampling(pipe) if told else contextlib.nullcontext():
        both = pipe(["a", "b c"], latents=x.repeat(2, 1, 1, 1), **given).images
        alone = pipe(["a"], latents=x, **given).images
    torch.testing.assert_close(both[:1], alone, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_where_one_of_two_guidances_ends_nothing_is_reused(variant):
    """The second becomes the step's second call, and both calls' features have to be of one step."""
    x, states = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 32)
    variant.set_options(cache_schedule=[0], pag_scale=1.0, pag_interval=[0.0, 0.5], seg_scale=1.0)
    deep = []
    variant.mid_block.register_forward_hook(lambda *_: deep.append(1))
    counts = []
    for t in torch.tensor([900, 700, 500, 300]):
        variant(x, t, states)
        counts.append(len(deep))
    assert counts == [3, 3, 5, 5]


@torch.no_grad()
def test_where_guidance_begins_the_difference_is_between_features_of_one_step(variant):
    x, states = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 32)
    timesteps = torch.tensor([900, 700, 500, 300])
    variant.set_options(pag_scale=5.0, pag_interval=[0.5, 1.0])
    exact = [variant(x, t, states).sample for t in timesteps]
    variant.set_options(cache_schedule=[0])
    cached = [variant(x, t, states).sample for t in timesteps.clone()]
    assert not torch.equal(cached[1], exact[1])
    assert torch.equal(cached[2], exact[2])


def test_beside_a_cache(tiny_pipeline, variant):
    """Each of the two calls of a step reuses its own features, and the second picture is the first again."""
    deep: list[int] = []
    variant.mid_block.register_forward_hook(lambda module, args, output: deep.append(len(output)))
    seen = Counted(variant)
    variant.set_options(pag_scale=1.0, cache_interval=2)
    pictures = [picture(with_unet(tiny_pipeline, variant), num_inference_steps=4) for _ in range(2)]
    assert torch.equal(*pictures)
    assert seen.batches == 8 * [4, 2]
    assert deep == 4 * [4, 2]
