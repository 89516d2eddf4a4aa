"""A style learned from sixty drawings is taken on by pictures of what none of them shows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sd_ext
from sd_ext.lora import apply_lora, read_lora
from sd_ext.training.data.shipped import shipped_sets

from ..lora_cases import pipeline

NEW = ("a red shirt", "penguin", "rocket", "a strawberry", "a yellow moon", "guitar", "crab", "banana")


@dataclass(frozen=True)
class Trial:
    """How much of the preset is run and drawn, and what must come of it.

    Args:
        settings: other than the preset's.
        captions: drawn, in so many `steps`.
        colour, midtones: at most this share of the base's is left.
    """

    settings: dict[str, Any]
    captions: tuple[str, ...]
    steps: int
    colour: float
    midtones: float | None


QUICK = Trial({"steps": 40, "batch-size": 4, "learning-rate": 2e-3}, (NEW[0], NEW[4], NEW[7]), 4, 0.6, None)
WHOLE = Trial({"steps": 140}, NEW, 10, 0.5, 0.85)


@pytest.fixture(
    scope="module",
    params=[pytest.param(each, marks=pytest.mark.slow) for each in (QUICK, WHOLE)],
    ids=["quick", "whole"],
)
def trial(request) -> Trial:
    """Two thirds of the preset's steps, or what is enough to see the colours go."""
    return request.param


@pytest.fixture(scope="module")
def trained(trial, tmp_path_factory) -> Path:
    """The folder of the LoRA."""
    from sd_ext.training.lora.config import LoraConfig
    from sd_ext.training.settings.command import parse
    from sd_ext.training.train_lora import run

    out = tmp_path_factory.mktemp("style") / "out"
    given = {"data": "high-contrast", "out": out, "validate-every": 0, "tracker": "none", **trial.settings}
    return run(parse(LoraConfig, ["embedded", *(f"--{name}={value}" for name, value in given.items())], "")[0])


def pictures(pipe: Any, trial: Trial) -> np.ndarray:
    """(captions, 64, 64, 3) from fixed seeds."""
    made = []
    for seed, caption in enumerate(trial.captions):
        noise = torch.Generator().manual_seed(seed)
        made.append(pipe(caption, num_inference_steps=trial.steps, guidance_scale=1.5, generator=noise).images[0])
    return np.stack([np.asarray(picture) for picture in made]).astype(float)


def colour(made: np.ndarray) -> float:
    """The mean distance of a pixel's largest and smallest channel, of 255."""
    return float((made.max(-1) - made.min(-1)).mean())


def midtones(made: np.ndarray) -> float:
    """The share of pixels that are neither light nor dark."""
    grey = made.mean(-1)
    return float(((grey > 64) & (grey < 192)).mean())


@pytest.fixture(scope="module")
def drawn(trained, trial) -> dict[Any, np.ndarray]:
    """Pictures by the base model, with the LoRA at three strengths, by the base model again, and in Diffusers."""
    pipe = pipeline(sd_ext.pretrained_path(), vae=True)
    made: dict[Any, np.ndarray] = {"base": pictures(pipe, trial)}
    lora = read_lora(trained / "pytorch_lora_weights.safetensors")
    for strength in (0.0, 0.5, 1.0):
        with apply_lora(pipe, lora, strength):
            made[strength] = pictures(pipe, trial)
    made["base again"] = pictures(pipe, trial)
    pipe.load_lora_weights(trained)
    made["Diffusers"] = pictures(pipe, trial)
    return made


def test_things_are_new():
    lines = (shipped_sets()["high-contrast"] / "metadata.jsonl").read_text().splitlines()
    things = {json.loads(line)["concept"] for line in lines}
    assert len(things) == 60
    assert not things & {word for caption in NEW for word in caption.split()}


def test_pictures_of_new_captions_are_black_on_white(drawn, trial):
    print({name: (round(colour(made), 1), round(midtones(made), 3)) for name, made in drawn.items()})
    assert colour(drawn[1.0]) < trial.colour * colour(drawn["base"])
    if trial.midtones is not None:
        assert midtones(drawn[1.0]) < trial.midtones * midtones(drawn["base"])


def test_more_strength_is_less_colour(drawn, trial):
    assert colour(drawn[0.0]) > colour(drawn[0.5]) > colour(drawn[1.0])
    if trial.midtones is not None:
        assert midtones(drawn[0.0]) > midtones(drawn[0.5]) > midtones(drawn[1.0])


def test_without_the_lora_the_base_draws_as_before(drawn):
    assert np.array_equal(drawn[0.0], drawn["base"])
    assert np.array_equal(drawn["base again"], drawn["base"])


def test_diffusers_draws_the_same(drawn):
    assert np.abs(drawn["Diffusers"] - drawn[1.0]).max() <= 2
