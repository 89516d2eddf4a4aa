"""A style learned from sixty drawings is taken on by pictures of what none of them shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.errors import InputError
from sd_ext.lora import apply_lora, read_lora
from sd_ext.training.sets.line_drawings import FONT, write_line_drawings

from ..lora_cases import pipeline

NEW = ("red apple", "tiger face", "rocket", "umbrella", "yellow star", "locomotive", "octopus", "red heart")


@pytest.fixture(scope="module")
def style(tmp_path_factory):
    """The folder of the preset's LoRA after two thirds of its steps, and the captions it was trained on."""
    try:
        FONT.find()
    except InputError as missing:
        pytest.skip(str(missing))
    from sd_ext.training.lora.config import LoraConfig
    from sd_ext.training.settings.command import parse
    from sd_ext.training.train_lora import run

    root = tmp_path_factory.mktemp("style")
    assert write_line_drawings(root / "set", size=64) == 60
    given = {"data": root / "set", "out": root / "out", "steps": 140, "validate-every": 0, "tracker": "none"}
    config, _ = parse(LoraConfig, ["embedded", *(f"--{name}={value}" for name, value in given.items())], "")
    return run(config), (root / "set" / "metadata.jsonl").read_text()


def pictures(pipe: Any) -> np.ndarray:
    """(captions, 64, 64, 3) from fixed seeds."""
    made = []
    for seed, caption in enumerate(NEW):
        noise = torch.Generator().manual_seed(seed)
        made.append(pipe(caption, num_inference_steps=10, guidance_scale=1.5, generator=noise).images[0])
    return np.stack([np.asarray(picture) for picture in made]).astype(float)


def colour(made: np.ndarray) -> float:
    """The mean distance of a pixel's largest and smallest channel, of 255."""
    return float((made.max(-1) - made.min(-1)).mean())


def midtones(made: np.ndarray) -> float:
    """The share of pixels that are neither light nor dark."""
    grey = made.mean(-1)
    return float(((grey > 64) & (grey < 192)).mean())


@pytest.fixture(scope="module")
def drawn(style):
    """Pictures by the base model, with the LoRA at three strengths, fused, and by the base model again."""
    folder, _ = style
    pipe = pipeline(sd_ext.pretrained_path(), vae=True)
    made: dict[Any, np.ndarray] = {"base": pictures(pipe)}
    lora = read_lora(folder / "pytorch_lora_weights.safetensors")
    for strength in (0.0, 0.5, 1.0):
        with apply_lora(pipe, lora, strength):
            made[strength] = pictures(pipe)
    made["base again"] = pictures(pipe)
    pipe.load_lora_weights(folder)
    made["Diffusers"] = pictures(pipe)
    return made


def test_captions_are_new(style):
    assert not any(f'"text": "{caption}"' in style[1] for caption in NEW)


def test_pictures_of_new_captions_are_black_on_white(drawn):
    print({name: (round(colour(made), 1), round(midtones(made), 3)) for name, made in drawn.items()})
    assert colour(drawn[1.0]) < 0.4 * colour(drawn["base"])
    assert midtones(drawn[1.0]) < 0.6 * midtones(drawn["base"])


def test_more_strength_is_less_colour(drawn):
    assert colour(drawn[0.0]) > colour(drawn[0.5]) > colour(drawn[1.0])
    assert midtones(drawn[0.0]) > midtones(drawn[0.5]) > midtones(drawn[1.0])


def test_without_the_lora_the_base_draws_as_before(drawn):
    assert np.array_equal(drawn[0.0], drawn["base"])
    assert np.array_equal(drawn["base again"], drawn["base"])


def test_diffusers_draws_the_same(drawn):
    assert np.abs(drawn["Diffusers"] - drawn[1.0]).max() <= 2
