"""What the U-Net is given, against the pipelines' own encoding of short prompts and a plain restatement of the rest."""

from __future__ import annotations

import copy
import logging

import pytest
import torch

import sd_ext
from sd_ext.errors import InputError
from sd_ext.prompts.encode import encode_prompt, read_prompt, weighted

LONG = "abc def, ghi jkl mno pqr, stu vwx"  # 26 tokens; the second comma is number 20 from the end of the first 22


def equal(made, expected):
    assert made.shape == expected.shape
    assert torch.equal(made, expected)


def rows(tokenizer, *texts):
    """Each text as one row of 24, as everybody's tokenizer call makes it."""
    given = {"padding": "max_length", "max_length": 24, "truncation": True, "return_tensors": "pt"}
    return [tokenizer(text, **given).input_ids for text in texts]


@torch.no_grad()
def states_sd(pipe, *texts):
    return [pipe.text_encoder(row)[0] for row in rows(pipe.tokenizer, *texts)]


@torch.no_grad()
def states_sdxl(pipe, *texts):
    """The states of each encoder and the pooled output of the second, for each text."""
    first = [
        pipe.text_encoder(row, output_hidden_states=True).hidden_states[-2] for row in rows(pipe.tokenizer, *texts)
    ]
    second = [pipe.text_encoder_2(row, output_hidden_states=True) for row in rows(pipe.tokenizer_2, *texts)]
    return first, [each.hidden_states[-2] for each in second], [each.text_embeds for each in second]


def by_hand(states, weights):
    """Multiply and restore the mean, number by number."""
    old = states.double()
    new = torch.stack([old[0, i] * weights.get(i, 1.0) for i in range(old.shape[1])])[None]
    return (new * (old.sum() / new.sum())).float()


@pytest.mark.parametrize(("prompt", "negative"), [("red apple", None), ("red, apple", "blue"), ("", ""), ("(a", "b]")])
def test_short_prompts_are_encoded_as_the_pipeline_does(sd, sdxl, prompt, negative):
    own = sd.encode_prompt(prompt, "cpu", 1, True, negative)
    made = encode_prompt(sd, prompt, negative, plain=True)
    equal(made["prompt_embeds"], own[0])
    equal(made["negative_prompt_embeds"], own[1])
    states, against, pooled, pooled_against = sdxl.encode_prompt(prompt, negative_prompt=negative)
    made = encode_prompt(sdxl, prompt, negative, plain=True)
    equal(made["prompt_embeds"], states)
    equal(made["negative_prompt_embeds"], against)
    equal(made["pooled_prompt_embeds"], pooled)
    equal(made["negative_pooled_prompt_embeds"], pooled_against)


def test_long_prompts_are_read_in_chunks_which_commas_end(sd, sdxl):
    """abc def, ghi jkl mno pqr, | stu vwx: at 22 tokens the comma before stu is three back."""
    parts = "abc def, ghi jkl mno pqr,", "stu vwx"
    equal(encode_prompt(sd, LONG)["prompt_embeds"], torch.cat(states_sd(sd, *parts), 1))
    first, second, pooled = states_sdxl(sdxl, *parts)
    made = encode_prompt(sdxl, LONG)
    equal(made["prompt_embeds"], torch.cat([torch.cat(first, 1), torch.cat(second, 1)], -1))
    equal(made["pooled_prompt_embeds"], pooled[0])


def test_the_shorter_side_is_filled_up_with_empty_chunks(sd, sdxl):
    equal(encode_prompt(sd, "ab", "c BREAK d BREAK e")["prompt_embeds"], torch.cat(states_sd(sd, "ab", "", ""), 1))
    made = encode_prompt(sd, LONG, "blue")
    equal(made["negative_prompt_embeds"], torch.cat(states_sd(sd, "blue", ""), 1))
    made = encode_prompt(sd, ["ab", "c BREAK d"], ["", "x"])
    assert {tuple(tensor.shape) for tensor in made.values()} == {(2, 48, 32)}
    equal(made["prompt_embeds"][1:], torch.cat(states_sd(sd, "c", "d"), 1))
    made = encode_prompt(sdxl, LONG)  # no negative prompt: SDXL's zeros
    assert made["negative_prompt_embeds"].shape == made["prompt_embeds"].shape
    assert not made["negative_prompt_embeds"].any()
    assert not made["negative_pooled_prompt_embeds"].any()


def test_weights_multiply_the_states_and_the_mean_is_restored_for_each_chunk(sd, sdxl):
    """Tokens 1 to 3 are `red`; `(x:0.5)` is the first token of the second chunk."""
    made = encode_prompt(sd, "(red:1.3) apple BREAK (x:0.5)y")["prompt_embeds"]
    # "(x:0.5)y" is two texts for the tokenizer, x and y, where "xy" would be one.
    first, second = states_sd(sd, "red apple", "x y")
    weights = {1: 1.3, 2: 1.3, 3: 1.3}
    torch.testing.assert_close(made, torch.cat([by_hand(first, weights), by_hand(second, {1: 0.5})], 1))
    one, two, pooled = states_sdxl(sdxl, "red apple")
    made = encode_prompt(sdxl, "((red)) apple")
    weights = dict.fromkeys((1, 2, 3), 1.21)
    torch.testing.assert_close(
        made["prompt_embeds"], torch.cat([by_hand(one[0], weights), by_hand(two[0], weights)], -1)
    )
    equal(made["pooled_prompt_embeds"], pooled[0])


def test_the_mean_is_restored():
    states = torch.randn(1, 24, 32, dtype=torch.float64) + 1
    made = weighted(states, [1.5, 0.2, -1.0])
    torch.testing.assert_close(made.mean(), states.mean(), rtol=1e-6, atol=0)
    ratios = made / states
    torch.testing.assert_close(
        ratios[0, 1] / ratios[0, 0], torch.full((32,), 1.5, dtype=torch.float64), rtol=1e-5, atol=0
    )
    assert weighted(states.half(), [2.0]).dtype == torch.float16


def test_a_mean_that_is_rounding_is_not_restored():
    states = torch.randn(1, 24, 32)
    states -= states.mean()
    made = weighted(states, [1.5])
    equal(made[:, 1], states[:, 1] * 1.5)
    equal(made[:, 2:], states[:, 2:])


def test_clip_skip_leaves_the_last_layers_out(sd):
    """By an encoder that never had them: its output is the final norm of what the layer before made."""
    for skip in (1, 2):
        shorter = copy.deepcopy(sd.text_encoder)
        shorter.encoder.layers = shorter.encoder.layers[: 3 - skip]
        shorter.config.num_hidden_layers = 3 - skip
        with torch.no_grad():
            (row,) = rows(sd.tokenizer, "red apple")
            expected = shorter(row)[0]
        equal(encode_prompt(sd, "red apple", clip_skip=skip)["prompt_embeds"], expected)
    for skip in (0, 3, -1):
        with pytest.raises(InputError, match=rf"clip skip {skip} cannot work.* 1 to 2"):
            encode_prompt(sd, "red apple", clip_skip=skip)


def test_sdxl_ignores_clip_skip(sdxl):
    one, two = (encode_prompt(sdxl, "red apple", clip_skip=skip) for skip in (1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_what_a_prompt_becomes_does_not_depend_on_its_company(sd):
    together = encode_prompt(sd, [LONG, "b (c)", "d BREAK e"], ["f", "", LONG])
    for number, (prompt, negative) in enumerate([(LONG, "f"), ("d BREAK e", LONG)]):
        alone = encode_prompt(sd, prompt, negative)
        for name in alone:
            equal(together[name][2 * number : 2 * number + 1], alone[name])


@pytest.mark.parametrize(
    ("prompt", "as_it_is", "count"),
    [
        ("red apple", True, 1),
        ("", True, 1),
        ("red:1.3)", True, 1),
        ("(red) apple", False, 1),
        (r"\(red", False, 1),
        ("a" * 22, True, 1),
        ("a" * 23, False, 2),
        ("a BREAK b", False, 2),
        ("a BREAK", False, 1),
    ],
)
def test_what_the_pipeline_itself_would_read_is_known(sd, sdxl, prompt, as_it_is, count):
    for pipe in (sd, sdxl):
        reading = read_prompt(pipe, prompt)
        assert (reading.as_it_is, reading.count) == (as_it_is, count)
        assert read_prompt(pipe, prompt, plain=True).count == 1


def test_plain_prompts_are_cut_as_the_pipeline_cuts_them(sd):
    equal(encode_prompt(sd, LONG, plain=True)["prompt_embeds"], sd.encode_prompt(LONG, "cpu", 1, False)[0])


def test_pictures_come_out(sd, sdxl):
    for pipe in (sd, sdxl):
        given = {"num_inference_steps": 2, "output_type": "latent", "generator": torch.Generator().manual_seed(0)}
        plain = pipe("red apple", **given).images
        given["generator"].manual_seed(0)
        equal(pipe(**sd_ext.encode_prompt(pipe, "red apple", None if pipe is sdxl else ""), **given).images, plain)
        given["generator"].manual_seed(0)
        assert not torch.equal(pipe(**sd_ext.encode_prompt(pipe, f"(red) {LONG}", "blue"), **given).images, plain)


def test_what_a1111_would_do_besides_is_logged_once(sd, caplog):
    with caplog.at_level(logging.WARNING):
        encode_prompt(sd, ["x <lora:s:1>", "y <lora:s:1>"])
    assert [record.message[:12] for record in caplog.records] == ["<lora:s:1> n"]


def test_what_cannot_work(sd, sdxl):
    with pytest.raises(InputError, match="2 prompts and 1 negative"):
        encode_prompt(sd, ["a", "b"], ["c"])
    with pytest.raises(InputError, match="0 prompts"):
        encode_prompt(sd, [])
    with pytest.raises(InputError, match="no finite numbers"):
        encode_prompt(sd, f"(a:{'9' * 60})")


def test_a_pipeline_without_negative_prompts_gets_none(sd):
    from diffusers import LatentConsistencyModelPipeline, LCMScheduler

    parts = {**sd.components, "scheduler": LCMScheduler.from_config(sd.scheduler.config)}
    pipe = LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)
    made = encode_prompt(pipe, "a (red)")
    equal(made.pop("prompt_embeds"), encode_prompt(sd, "a (red)")["prompt_embeds"])
    assert made == {}


def test_other_pipelines_are_refused(sd):
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    other = DDPMPipeline(UNet2DModel(8, block_out_channels=(32, 32), down_block_types=("DownBlock2D",) * 2,
                         up_block_types=("UpBlock2D",) * 2), DDPMScheduler())  # fmt: skip
    with pytest.raises(InputError, match="DDPMPipeline does not read prompts with CLIP alone"):
        encode_prompt(other, "red apple")
