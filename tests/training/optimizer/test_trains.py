"""What finds its learning rate by itself trains a LoRA of the embedded model as well as AdamW, at its own default."""

from __future__ import annotations

import importlib.util

import pytest

from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.optimizer.names import PRESETS
from sd_ext.training.run.history import read_history
from sd_ext.training.settings.command import parse
from sd_ext.training.train_lora import run

STEPS = 120


def loss_after(name, tmp_path, *more, steps=STEPS):
    """On pictures that are held out."""
    out = tmp_path / f"{name}-{'-'.join(more)}"
    line = ["embedded", "--data", "high-contrast", "--out", str(out), "--cache-dir", str(tmp_path / "cache")]
    line += ["--optimizer", name, "--steps", str(steps), "--batch-size", "4", "--validation-share", "0.15"]
    line += ["--validation-times", "3", "--validate-every", str(steps), "--prompts", "none", "--tracker", "none"]
    run(parse(LoraConfig, [*line, *more], "")[0])
    return read_history(out / "history.jsonl")[-1]["validation_loss"]


@pytest.mark.slow
def test_what_finds_its_own_rate_trains(tmp_path):
    before = loss_after("sgd", tmp_path, "--learning-rate", "1e-12", steps=1)
    gained = before - loss_after("adamw", tmp_path)
    assert gained > 0.05
    for name, known in PRESETS.items():
        if known.one_rate and importlib.util.find_spec(known.path.split(".")[0]):
            for more in ((), ("--warmup", "40")):
                assert before - loss_after(name, tmp_path, *more) > 0.6 * gained, (name, more)
