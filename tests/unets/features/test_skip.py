"""Calls left out: which they are, and that what stands in for them lies on the line through the last two."""

from __future__ import annotations

import pytest
import torch

from sd_ext import VariantUNet2DConditionModel
from sd_ext.errors import InputError

from ..tiny import build, inputs
from .test_cache import TIMESTEPS, plain, whole_passes


def skipping(threshold: float = 1.0):
    return VariantUNet2DConditionModel.from_unet(build(), skip_threshold=threshold)


def run(unet, timesteps=TIMESTEPS, **changes):
    """The predictions of a run, and the steps that were computed."""
    made, computed = [], []
    with torch.no_grad(), whole_passes(unet) as passes:
        for step, timestep in enumerate(timesteps):
            before = len(passes)
            made.append(unet(**{**inputs(unet), "timestep": timestep, **changes}).sample)
            computed += [step] * (len(passes) - before)
    return made, computed


def test_every_second_call_is_left_out_and_continued_along_the_line():
    unet = skipping()
    made, computed = run(unet)
    assert computed == [0, 1, 2, 4, 6, 8]
    exact = [plain(unet, **{**inputs(unet), "timestep": timestep}) for timestep in TIMESTEPS]
    for step in computed:
        assert torch.equal(made[step], exact[step])
    for step, (a, b) in {3: (1, 2), 5: (2, 4), 7: (4, 6)}.items():
        far = float((TIMESTEPS[step] - TIMESTEPS[b]) / (TIMESTEPS[b] - TIMESTEPS[a]))
        torch.testing.assert_close(made[step], exact[b] + far * (exact[b] - exact[a]))


def test_the_threshold_is_what_the_line_missed_by():
    exact = [plain(unet := skipping(), **{**inputs(unet), "timestep": timestep}) for timestep in TIMESTEPS[:3]]
    missed = float((exact[2] - (2 * exact[1] - exact[0])).norm() / exact[2].norm())
    assert 0 < missed < 0.5
    assert run(skipping(missed * 0.99), TIMESTEPS[:4])[1] == [0, 1, 2, 3]
    assert run(skipping(missed * 1.01), TIMESTEPS[:4])[1] == [0, 1, 2]


def test_a_step_that_does_not_go_on_is_computed():
    falling = [900, 800, 700]
    for last in (700, 800, 950):  # the same again, and back up
        assert run(skipping(), torch.tensor([*falling, last]))[1] == [0, 1, 2, 3]


def test_another_prompt_shape_or_run_begins_anew():
    unet = skipping()
    run(unet, TIMESTEPS[:3])
    other = torch.randn_like(inputs(unet)["encoder_hidden_states"])
    assert run(unet, TIMESTEPS[:4])[1] == [0, 1, 2]
    run(unet, TIMESTEPS[:3])
    with torch.no_grad(), whole_passes(unet) as passes:
        unet(**{**inputs(unet), "timestep": TIMESTEPS[3], "encoder_hidden_states": other})
    assert len(passes) == 1


def test_the_halves_of_guidance_are_left_out_together():
    unet = skipping()
    texts = [torch.randn_like(inputs(unet)["encoder_hidden_states"]) for _ in range(2)]
    with torch.no_grad(), whole_passes(unet) as passes:
        counts = []
        for timestep in TIMESTEPS:
            before = len(passes)
            for text in texts:
                unet(**{**inputs(unet), "timestep": timestep, "encoder_hidden_states": text})
            counts.append(len(passes) - before)
    assert counts == [2, 2, 2, 0, 2, 0, 2, 0, 2]


def test_training_and_gradients_compute_every_call():
    unet = skipping()
    with whole_passes(unet) as passes:
        for timestep in TIMESTEPS:
            unet(**{**inputs(unet), "timestep": timestep})
    assert len(passes) == len(TIMESTEPS)
    unet.train()
    assert run(unet)[1] == list(range(len(TIMESTEPS)))


def test_exactly_leaves_nothing_out():
    unet = skipping()
    with unet.exactly():
        assert run(unet)[1] == list(range(len(TIMESTEPS)))
    assert len(run(unet)[1]) == 6


def test_a_pipeline_draws_near_the_plain_latents_with_fewer_calls(tiny_pipeline):
    def draw():
        generator = torch.Generator().manual_seed(0)
        return tiny_pipeline("a fox", num_inference_steps=12, generator=generator, output_type="latent").images

    exact = draw()
    tiny_pipeline.unet = VariantUNet2DConditionModel.from_unet(tiny_pipeline.unet, skip_threshold=1.0)
    with whole_passes(tiny_pipeline.unet) as passes:
        near = draw()
    assert len(passes) < 9
    assert 0 < float((near - exact).norm() / exact.norm()) < 0.2


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_out_of_range(value):
    with pytest.raises(InputError, match="skip_threshold must be a fraction"):
        skipping(value)
