"""What the U-Net is told: the same as the family's own pipeline tells it."""

import pytest
import torch

from sd_ext.training.model.chunked import lengths
from sd_ext.training.model.text_encoders import TextTowers, tokenize, unet_arguments
from sd_ext.training.model.trainable import find_trainable

WORDS = ["red circle", "", "a b c d e f g h i j k l m n o p q r s t u v w x y z", "Émile & co. 3"]


def load(folder, cls):
    pipe = cls.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def test_stable_diffusion_as_its_pipeline(tiny_pipeline_dir):
    from diffusers import StableDiffusionPipeline

    towers = TextTowers.load(find_trainable(str(tiny_pipeline_dir)))
    found = towers(towers.tokenize(WORDS))
    pipe = load(tiny_pipeline_dir, StableDiffusionPipeline)
    wanted, _ = pipe.encode_prompt(WORDS, "cpu", 1, False)
    assert found.keys() == {"states"}
    assert torch.equal(found["states"], wanted)


@torch.no_grad()
def test_sdxl_as_its_pipeline(tiny_sdxl_dir):
    from diffusers import StableDiffusionXLPipeline

    files = find_trainable(str(tiny_sdxl_dir))
    assert files.family == "sdxl"
    towers = TextTowers.load(files)
    tokens = towers.tokenize(WORDS)
    assert tokens.shape == (4, 2, 24)
    found = towers(tokens)
    pipe = load(tiny_sdxl_dir, StableDiffusionXLPipeline)
    states, _, pooled, _ = pipe.encode_prompt(WORDS, device="cpu", do_classifier_free_guidance=False)
    assert found["states"].shape == (4, 24, 16 + 32)
    torch.testing.assert_close(found["states"], states)
    torch.testing.assert_close(found["pooled"], pooled)
    seen = unet_arguments({**found, "time_ids": torch.zeros(4, 6)})
    assert torch.equal(seen["added_cond_kwargs"]["text_embeds"], found["pooled"])


def test_captions_that_are_too_long_are_known(tiny_pipeline):
    tokenizer = tiny_pipeline.tokenizer
    found = lengths(tokenizer, WORDS, 1)
    assert [each.kept < each.tokens for each in found] == [False, False, True, False]
    assert found[1] == (0, 1, 0)
    assert lengths(tokenizer, [], 1) == []
    assert tokenize(tokenizer, WORDS).shape == (4, 24)


def test_encoders_come_frozen(tiny_sdxl_dir):
    towers = TextTowers.load(find_trainable(str(tiny_sdxl_dir)), torch.bfloat16)
    assert not any(p.requires_grad for p in towers.parameters())
    assert {p.dtype for p in towers.parameters()} == {torch.bfloat16}
    assert not any(encoder.training for encoder in towers.encoders.values())
    with pytest.raises(ValueError, match=r"shorter|longer"):
        TextTowers(towers.tokenizers, list(towers.encoders.values()), ["text_encoder"])
