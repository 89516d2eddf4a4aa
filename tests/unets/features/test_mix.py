"""Other mixtures of the two halves: Diffusers' guiders as oracles, the papers' formulas on x0, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance, ClassifierFreeZeroStarGuidance
from diffusers.guiders.adaptive_projected_guidance import MomentumBuffer, normalized_guidance

import sd_ext
from sd_ext.board import BOARD
from sd_ext.errors import InputError
from sd_ext.unets import VariantUNet2DConditionModel
from sd_ext.unets.inside import say
from sd_ext.unets.inside.noise import Noise
from tests.unets.tiny import build, draw

WEIGHT, STEPS = 6.0, 4


@pytest.fixture(params=["epsilon", "v_prediction"])
def pipe(request, tiny_pipeline):
    tiny_pipeline.scheduler = DDIMScheduler(beta_schedule="scaled_linear", prediction_type=request.param)
    return tiny_pipeline


def latents(pipe, **options):
    """What a pipeline draws: two pictures, before they are decoded."""
    given = {"num_inference_steps": STEPS, "guidance_scale": WEIGHT, "output_type": "latent", **options}
    return pipe(["a", "b c"], generator=torch.Generator().manual_seed(0), **given).images


def ours(pipe, **options):
    plain = pipe.unet
    pipe.register_modules(unet=VariantUNet2DConditionModel.from_unet(plain, **options))
    try:
        return latents(pipe)
    finally:
        pipe.register_modules(unet=plain)


def theirs(pipe, mix):
    """With a hook on the plain network: mix(step, timestep, x, u, c) is given to the pipeline as both halves."""
    step = iter(range(STEPS))

    def hook(_, args, kwargs, output):
        u, c = output[0].chunk(2)
        return (torch.cat([mix(next(step), args[1], args[0].chunk(2)[0], u, c)] * 2),)

    handle = pipe.unet.register_forward_hook(hook, with_kwargs=True)
    try:
        return latents(pipe)
    finally:
        handle.remove()


def by(guider):
    """The mixture of one of Diffusers' guiders."""

    def mix(step, timestep, x, u, c):
        guider.set_state(step=step, num_inference_steps=STEPS, timestep=timestep)
        if step == 0:
            guider.momentum_buffer = MomentumBuffer(getattr(guider, "adaptive_projected_guidance_momentum", 0) or 0)
        return guider.forward(c, u).pred

    return mix


def same(one, other):
    torch.testing.assert_close(one, other, atol=2e-4, rtol=2e-4)


# ---- Diffusers' guiders ----------------------------------------------------------------------------------------------


def test_guidance_is_that_of_diffusers_guiders(pipe):
    plain = latents(pipe)
    apg = AdaptiveProjectedGuidance(
        WEIGHT - 1,
        adaptive_projected_guidance_momentum=-0.5,
        adaptive_projected_guidance_rescale=2.0,
        eta=0.25,
        use_original_formulation=True,
    )
    asked = {"apg_eta": 0.25, "apg_momentum": -0.5, "apg_norm": 2.0, "apg_of": "output"}
    for guider, options in (
        (apg, asked),
        (ClassifierFreeGuidance(WEIGHT, guidance_rescale=0.7), {"cfg_rescale": 0.7}),
        (ClassifierFreeZeroStarGuidance(WEIGHT, zero_init_steps=0), {"cfg_zero_star": True}),
    ):
        expected = theirs(pipe, by(guider))
        assert (expected - plain).abs().max() > 1e-2
        same(ours(pipe, **options), expected)


def test_the_first_steps_stand_still(pipe):
    """Of velocities, zeros, as Diffusers has them; of noise, what has no velocity."""
    if pipe.scheduler.config.prediction_type == "v_prediction":
        guider = ClassifierFreeZeroStarGuidance(WEIGHT, zero_init_steps=2)
        same(ours(pipe, cfg_zero_star=True, cfg_zero_steps=2), theirs(pipe, by(guider)))
    x = draw(1, 4, 8, 8)
    noise = Noise.of(pipe.scheduler, 500.0, "")
    still = noise.standing(x)
    x0, eps = noise.x0(x, still), noise.epsilon(x, still)
    torch.testing.assert_close(noise.alpha * eps - noise.sigma * x0, torch.zeros_like(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(noise.alpha * x0 + noise.sigma * eps, x)


# ---- on x0 -----------------------------------------------------------------------------------------------------------


def on_x0(pipe, mix):
    """mix(u0, c0, step) of predicted pictures, by the scheduler's own numbers."""

    def mixed(step, timestep, x, u, c):
        alpha, sigma = (
            pipe.scheduler.alphas_cumprod[timestep] ** 0.5,
            (1 - pipe.scheduler.alphas_cumprod[timestep]) ** 0.5,
        )
        if pipe.scheduler.config.prediction_type == "epsilon":
            g0 = mix((x - sigma * u) / alpha, (x - sigma * c) / alpha, step)
            return (x - alpha * g0) / sigma
        g0 = mix(alpha * x - sigma * u, alpha * x - sigma * c, step)
        return (alpha * x - g0) / sigma

    return mixed


def test_projection_of_x0_is_the_papers(pipe):
    buffers = {}

    def mix(u0, c0, step):
        buffer = buffers.setdefault("one", MomentumBuffer(-0.75))
        return normalized_guidance(c0, u0, WEIGHT - 1, buffer, 0.0, 1.5, use_original_formulation=True)

    expected = theirs(pipe, on_x0(pipe, mix))
    assert (expected - latents(pipe)).abs().max() > 1e-2
    same(ours(pipe, apg_eta=0.0, apg_momentum=-0.75, apg_norm=1.5), expected)


def test_dynamic_thresholding_is_imagens_with_the_range_of_another_weight(pipe):
    acted = []

    def mix(u0, c0, step):
        g0, m0 = (np.asarray(u0 + w * (c0 - u0), np.float64) for w in (WEIGHT, 2.0))
        for row, kept in zip(g0, m0, strict=True):
            s, r = (np.quantile(np.abs(each), 0.9) for each in (row, kept))
            if s > r:
                acted.append(step)
                row[:] = np.clip(row, -s, s) * (r / s)
        return torch.tensor(g0, dtype=torch.float32)

    expected = theirs(pipe, on_x0(pipe, mix))
    assert acted
    same(ours(pipe, cfg_threshold=0.9, cfg_threshold_weight=2.0), expected)


# ---- manners ---------------------------------------------------------------------------------------------------------


def test_samplers_find_the_halves_that_the_network_predicted():
    unet = VariantUNet2DConditionModel.from_unet(build())
    x, states, t = draw(1, 4, 8, 8).repeat(2, 1, 1, 1), draw(2, 5, 8), torch.tensor(500)
    u, c = unet(x, t, states).sample.chunk(2)
    unet.set_options(cfg_rescale=0.7)
    with sd_ext.sampling(unet, guidance_scale=5.0):
        got = unet(x, t, states).sample.chunk(2)
    assert torch.equal(got[0], u)
    assert not torch.allclose(got[1], c)
    guided = got[0] + 5.0 * (got[1] - got[0])
    for half, expected in (("conditional", c), ("unconditional", u)):
        BOARD.write_halves(t, u, c) if half == "unconditional" else None  # what is taken is forgotten
        assert torch.equal(BOARD.take(t, guided, half), expected)


def test_what_cannot_be_is_said(tiny_pipeline, caplog):
    say.forget()
    unet = VariantUNet2DConditionModel.from_unet(build(), apg_eta=0.0)
    x, states = draw(1, 4, 8, 8).repeat(2, 1, 1, 1), draw(2, 5, 8)
    with sd_ext.sampling(unet, guidance_scale=5.0), pytest.raises(InputError, match=r"apg_of.*scheduler="):
        unet(x, 500, states)
    with sd_ext.sampling(unet, guidance_scale=5.0, scheduler=DDIMScheduler()):
        unet(x, 500, states)
    with sd_ext.sampling(unet, branches=("unconditional", "conditional")):
        unet(x, 400, states)
    with sd_ext.sampling(unet, branches=("unconditional", "conditional", "perturbed")):
        unet(torch.cat([x, x[:1]]), 300, torch.cat([states, states[:1]]))
    assert [record.getMessage()[:24] for record in caplog.records] == ["apg_eta changes nothing:"] * 2
    for name, value in (("apg_eta", 2.0), ("apg_momentum", 1.0), ("cfg_rescale", -0.1), ("cfg_threshold", 1.5)):
        with pytest.raises(InputError, match=name):
            unet.set_options(**{name: value})
    tiny_pipeline.register_modules(unet=VariantUNet2DConditionModel.from_unet(tiny_pipeline.unet, cfg_rescale=0.5))
    with pytest.raises(InputError, match="both rescale"):
        latents(tiny_pipeline, guidance_rescale=0.5)
    latents(tiny_pipeline, guidance_scale=1.0, guidance_rescale=0.5)  # nothing to mix


@pytest.mark.parametrize("option", ["cfg_rescale", "apg_eta", "perp_neg_scale"])
def test_a_run_without_guidance_is_told_that_it_changes_nothing(tiny_pipeline, caplog, option):
    say.forget()
    plain = latents(tiny_pipeline, guidance_scale=1.0)
    tiny_pipeline.register_modules(unet=VariantUNet2DConditionModel.from_unet(tiny_pipeline.unet, **{option: 0.5}))
    with sd_ext.GuidanceInterval(0.5, 1.0, tiny_pipeline):
        latents(tiny_pipeline)
    assert "acts on guidance" not in caplog.text  # some steps have it
    assert torch.equal(latents(tiny_pipeline, guidance_scale=1.0), plain)
    expected = f"{option} changes nothing: it acts on guidance, of which this run has none"
    assert [record.getMessage() for record in caplog.records if "changes nothing" in record.getMessage()] == [expected]
    x, states = draw(2, 4, 8, 8), draw(2, 5, tiny_pipeline.unet.config.cross_attention_dim)
    tiny_pipeline.unet(x, torch.tensor(500), states)
    assert "nobody has said that the network is called with guidance" in caplog.text
