"""Prompts for parts of a picture: laws, the formula in plain matrix products, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.errors import InputError
from sd_ext.unets import VariantUNet2DConditionModel
from tests.unets.tiny import build


def latents(pipe, prompt="a", **options):
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    given = {"num_inference_steps": 3, "guidance_scale": 6.0, "output_type": "latent", **options}
    return pipe([prompt] * 2, generator=generators, **given).images


def same(one, other):
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


WHOLE = (0, 0, 1, 1)


@pytest.mark.parametrize(
    "options",
    [
        None,
        pytest.param({"pag_scale": 2.0, "cache_interval": 2}, marks=pytest.mark.slow),
        {"nag_scale": 2.0, "sag_scale": 0.5},
    ],
)
def test_a_region_that_is_all_is_the_picture_of_its_prompt(tiny_pipeline, options):
    """Also beside features that call the network again, for one half or the other; None is Diffusers' own U-Net."""
    if options is not None:
        unet = VariantUNet2DConditionModel.from_unet(tiny_pipeline.unet, **options)
        tiny_pipeline.register_modules(unet=unet)
    plain, other = latents(tiny_pipeline), latents(tiny_pipeline, "b c")
    assert (plain - other).abs().max() > 1e-2
    with sd_ext.regional(tiny_pipeline, [(WHOLE, "b c")]):
        same(latents(tiny_pipeline), other)
    with sd_ext.regional(tiny_pipeline, [(torch.ones(64, 64), "b c"), (np.ones((8, 8)), "b c")]):
        same(latents(tiny_pipeline), other)
    with sd_ext.regional(tiny_pipeline, [(WHOLE, "b c")], base=1):
        same(latents(tiny_pipeline), plain)
    assert torch.equal(latents(tiny_pipeline), plain)


@pytest.mark.parametrize("guidance", [6.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_masks_are_mixed_as_the_formula_says(tiny_pipeline, guidance):
    mask = torch.zeros(64, 64)
    mask[:, 32:] = 0.5
    texts = {p: tiny_pipeline.encode_prompt(p, "cpu", 1, False)[0] for p in ("b c", "c")}

    class Mixed:
        def attention(self, attn, x, text):
            text = text.expand(len(x), -1, -1)
            q, k, v = (attn.head_to_batch_dim(each) for each in (attn.to_q(x), attn.to_k(text), attn.to_v(text)))
            return attn.batch_to_head_dim(torch.bmm(attn.get_attention_scores(q, k), v))

        def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
            x, side = hidden_states, int(hidden_states.shape[1] ** 0.5)
            z = self.attention(attn, x, encoder_hidden_states)
            columns = (torch.arange(x.shape[1]) % side)[:, None]
            first, second = (columns < side // 4 * 3).float(), 0.5 * (columns >= side // 2)  # in the third quarter: 1.5
            total = (first + second).clamp_min(1)
            first, second = 0.8 * first / total, 0.8 * second / total
            new = (1 - first - second) * z + first * self.attention(attn, x, texts["b c"])
            new = new + second * self.attention(attn, x, texts["c"])
            begin = len(x) - 2
            return attn.to_out[0](torch.cat([z[:begin], new[begin:]]))

    plain, before = latents(tiny_pipeline, guidance_scale=guidance), tiny_pipeline.unet.attn_processors
    tiny_pipeline.unet.set_attn_processor({n: Mixed() if "attn2" in n else p for n, p in before.items()})
    expected = latents(tiny_pipeline, guidance_scale=guidance)
    tiny_pipeline.unet.set_attn_processor(before)
    assert (expected - plain).abs().max() > 1e-3
    with sd_ext.regional(tiny_pipeline, [((0, 0, 0.75, 1), "b c"), (mask, "c")], base=0.2):
        same(latents(tiny_pipeline, guidance_scale=guidance), expected)


def test_where_a_half_has_a_call_of_its_own(tiny_pipeline):
    other = latents(tiny_pipeline, "b c")
    from diffusers.guiders import ClassifierFreeGuidance

    with sd_ext.guided_by(tiny_pipeline, ClassifierFreeGuidance(6.0)), sd_ext.regional(tiny_pipeline, [(WHOLE, "b c")]):
        same(latents(tiny_pipeline), other)
    with sd_ext.GuidanceInterval(0.0, 0.5, tiny_pipeline):
        less = latents(tiny_pipeline, "b c")
        with sd_ext.regional(tiny_pipeline, [(WHOLE, "b c")]):
            same(latents(tiny_pipeline), less)


def test_what_cannot_be_is_refused(tiny_pipeline):
    for regions, words in (
        ([], "no region"),
        ([(WHOLE, 3)], "region 1 must be"),
        ([(WHOLE, "a"), ((0.5, 0, 0.2, 1), "b")], "region 2: a box is"),
        ([(torch.zeros(8, 8), "a")], "not empty"),
        ([(torch.full((8, 8), 2.0), "a")], "from 0 to 1"),
        ([(torch.ones(3, 8, 8), "a")], "height, width"),
        ([("left", "a")], "no box and no mask"),
    ):
        with pytest.raises(InputError, match=words), sd_ext.regional(tiny_pipeline, regions):
            pass
    with pytest.raises(InputError, match="share from 0 to 1"), sd_ext.regional(tiny_pipeline, [(WHOLE, "a")], base=2):
        pass
    with pytest.raises(InputError, match="no U-Net"), sd_ext.regional(build(), [(WHOLE, "a")]):
        pass
    with (
        sd_ext.regional(tiny_pipeline, [(torch.ones(64, 32), "a")]),
        pytest.raises(InputError, match=r"the mask of 'a' is 32 x 64, .*8 x 8 latents"),
    ):
        latents(tiny_pipeline)
    assert not tiny_pipeline.unet._forward_pre_hooks
