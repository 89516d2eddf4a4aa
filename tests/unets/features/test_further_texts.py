"""Guidance by further texts, Perp-Neg and NAG: the papers' formulas with the plain network, and what is refused."""

from __future__ import annotations

import contextlib

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

import sd_ext
from sd_ext.errors import InputError
from sd_ext.unets import VariantUNet2DConditionModel
from tests.unets.tiny import build, draw


def latents(pipe, **options):
    given = {
        "num_inference_steps": 3,
        "guidance_scale": 6.0,
        "output_type": "latent",
        "negative_prompt": "c",
        **options,
    }
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    given["negative_prompt"] = [given["negative_prompt"]] * 2
    return pipe(["a", "b c"], generator=generators, **given).images


@pytest.fixture(params=["sd", pytest.param("sdxl", marks=pytest.mark.slow)])
def pipe(request, tiny_pipeline, tiny_sdxl_dir):
    if request.param == "sd":
        return tiny_pipeline
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl_dir, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@contextlib.contextmanager
def variant(pipe, **options):
    plain = pipe.unet
    pipe.register_modules(unet=VariantUNet2DConditionModel.from_unet(plain, **options))
    yield pipe.unet
    pipe.register_modules(unet=plain)


# ---- Perp-Neg --------------------------------------------------------------------------------------------------------


def test_perp_neg_is_the_papers(pipe):
    plain = latents(pipe)
    found = pipe.encode_prompt("", device="cpu", num_images_per_prompt=2, do_classifier_free_guidance=True)

    def hook(unet, args, kwargs, output):
        handle.remove()
        more = dict(kwargs, encoder_hidden_states=found[1])
        if kwargs.get("added_cond_kwargs"):
            more["added_cond_kwargs"] = {
                "text_embeds": found[3],
                "time_ids": kwargs["added_cond_kwargs"]["time_ids"][:2],
            }
        e = unet(args[0][:2], args[1], **more)[0]
        n, c = output[0].chunk(2)
        guided = e.clone()
        for i in range(2):
            d, m = c[i] - e[i], n[i] - e[i]
            orthogonal = m - (m * d).sum() / (d * d).sum() * d
            guided[i] += 6.0 * (d - 1.5 * orthogonal)
        add()
        return (torch.cat([guided, guided]),)

    def add():
        nonlocal handle
        handle = pipe.unet.register_forward_hook(hook, with_kwargs=True)

    handle = None
    add()
    expected = latents(pipe)
    handle.remove()
    assert (expected - plain).abs().max() > 1e-2
    with variant(pipe, perp_neg_scale=1.5):
        torch.testing.assert_close(latents(pipe), expected, atol=1e-3, rtol=1e-3)
        empty = latents(pipe, negative_prompt="") if pipe.unet.config.addition_embed_type is None else None
    if empty is not None:  # SDXL has zeros for no prompt, and other states for an empty one
        torch.testing.assert_close(empty, latents(pipe, negative_prompt=""), atol=1e-3, rtol=1e-3)


# ---- NAG -------------------------------------------------------------------------------------------------------------


class Reference:
    """NAG by its authors' formula: (scale + 1) z - scale y, in plain matrix products."""

    def __init__(self, negative, scale, tau, alpha):
        self.negative, self.scale, self.tau, self.alpha = negative, scale, tau, alpha

    def attention(self, attn, x, text):
        q, k, v = (attn.head_to_batch_dim(each) for each in (attn.to_q(x), attn.to_k(text), attn.to_v(text)))
        return attn.batch_to_head_dim(torch.bmm(attn.get_attention_scores(q, k), v))

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, **_):
        z = self.attention(attn, hidden_states, encoder_hidden_states)
        y = self.attention(attn, hidden_states, self.negative.expand(len(z), -1, -1))
        a = (self.scale + 1) * z - self.scale * y
        ratio = a.norm(p=1, dim=-1, keepdim=True) / z.norm(p=1, dim=-1, keepdim=True)
        a = a * torch.minimum(ratio, torch.tensor(self.tau)) / ratio
        mixed = self.alpha * a + (1 - self.alpha) * z
        half = len(z) - 2  # the pictures are two; what comes before them is unconditional
        return attn.to_out[0](torch.cat([z[:half], mixed[half:]]))


@pytest.mark.parametrize("guidance", [6.0, 1.0])
def test_nag_is_its_authors(pipe, guidance):
    plain = latents(pipe, guidance_scale=guidance)
    negative = pipe.encode_prompt("c", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)[0]
    before = pipe.unet.attn_processors
    mine = {n: Reference(negative, 4.0, 1.2, 0.5) if "attn2" in n else p for n, p in before.items()}
    pipe.unet.set_attn_processor(mine)
    expected = latents(pipe, guidance_scale=guidance)
    pipe.unet.set_attn_processor(before)
    assert (expected - plain).abs().max() > 1e-3
    options = {"nag_scale": 4.0, "nag_tau": 1.2, "nag_prompt": "c"}
    with variant(pipe, **options):
        torch.testing.assert_close(latents(pipe, guidance_scale=guidance), expected, atol=1e-3, rtol=1e-3)
    with variant(pipe, **options, nag_alpha=0.0):
        assert torch.equal(latents(pipe, guidance_scale=guidance), plain)


def test_nag_beside_other_features(tiny_pipeline):
    """Each acts: the cache reuses, the gate freezes, and PAG's further call has the negative prompt as well."""
    with variant(tiny_pipeline, nag_scale=4.0, pag_scale=2.0, attention_gate=1, attention_gate_mean=True) as unet:
        got = latents(tiny_pipeline)
        unet.set_options(nag_scale=0.0)
        without = latents(tiny_pipeline)
        unet.set_options(nag_scale=4.0, cache_interval=2)
        deep = []
        unet.mid_block.register_forward_hook(lambda *_: deep.append(1))
        cached = latents(tiny_pipeline)
    assert torch.isfinite(torch.cat([got, without, cached])).all()
    assert (got - without).abs().max() > 1e-3
    assert len(deep) == 4


# ---- loops of one's own, and what is refused -------------------------------------------------------------------------


def test_a_loop_tells_the_texts():
    unet = VariantUNet2DConditionModel.from_unet(build())
    x, states, t = draw(1, 4, 8, 8).repeat(2, 1, 1, 1), draw(2, 5, 8), torch.tensor(500)
    n, c = unet(x, t, states).sample.chunk(2)
    unet.set_options(perp_neg_scale=1.0)
    with sd_ext.sampling(unet, guidance_scale=5.0, texts={"": states[:1]}):  # no prompt is the negative prompt
        got = unet(x, t, states).sample
    torch.testing.assert_close(got, torch.cat([n, c]), atol=1e-5, rtol=1e-4)
    with sd_ext.sampling(unet, guidance_scale=5.0), pytest.raises(InputError, match=r"perp_neg_scale needs.*texts="):
        unet(x, t, states)
    unet.set_options(perp_neg_scale=0.0, nag_scale=1.0, nag_prompt="x")
    with sd_ext.sampling(unet, texts={"x": draw(1, 5, 7)}), pytest.raises(InputError, match="7 channels, not 8"):
        unet(x, t, states)


def test_what_cannot_be_together_is_refused(tiny_pipeline):
    unet = VariantUNet2DConditionModel.from_unet(tiny_pipeline.unet)
    for options, words in (
        ({"perp_neg_scale": 1.0, "pag_scale": 1.0}, "perp_neg_scale needs the plain prediction.*pag_scale"),
        ({"perp_neg_scale": 1.0, "sag_scale": 1.0}, "choose one"),
        ({"sag_scale": 1.0, "slg_scale": 1.0}, "slg_scale"),
        ({"sag_scale": 1.0, "cache_interval": 2}, "cache_interval"),
        ({"nag_scale": -1.0}, "nag_scale must be 0 or more"),
        ({"nag_prompt": 3}, "nag_prompt"),
    ):
        with pytest.raises(InputError, match=words):
            unet.set_options(**options)
    with pytest.raises(InputError, match="no cross-attention"):
        VariantUNet2DConditionModel.from_unet(build("no attention"), nag_scale=1.0)
    tiny_pipeline.register_modules(unet=unet)
    encoder = tiny_pipeline.text_encoder
    unet.set_options(nag_scale=1.0)
    states = draw(1, 77, 32)
    tiny_pipeline.text_encoder = None
    with pytest.raises(InputError, match="no text encoder"):
        tiny_pipeline(prompt_embeds=states, negative_prompt_embeds=states, num_inference_steps=1, output_type="latent")
    tiny_pipeline.text_encoder = encoder


def test_nag_is_refused_where_its_blocks_are_offloaded_by_themselves(pipe):
    """There it would act in the layers outside the blocks alone."""
    cpu = torch.device("cpu")
    with variant(pipe, nag_scale=4.0) as unet:
        unet.enable_group_offload(cpu, cpu, "block_level", num_blocks_per_group=1)
        with pytest.raises(InputError, match="needs a network whose layers are not offloaded"):
            latents(pipe)
