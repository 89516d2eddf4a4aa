"""A LoRA trained by two processes is the one that one process trains: the same losses, and weights to rounding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.train_lora import run

from ..conftest import exit_codes, start_processes

STEPS = 7  # epochs of three: four squares, four wide ones, and a mixed group of three
FILES = ("pytorch_lora_weights.safetensors", "lora_kohya.safetensors", "learned_embeds.safetensors")


@pytest.fixture
def settings(two_sizes_folder, tiny_pipeline_dir) -> dict[str, Any]:
    """SGD: AdamW would divide gradients that are 0 but for rounding by their own size, so that rounding grows."""
    return {
        "data": str(two_sizes_folder), "model": str(tiny_pipeline_dir), "device": "cpu", "tracker": "none",
        "resolution": (32,), "bucket_step": 8, "rank": 2, "steps": STEPS, "log_every": 1, "validate_every": 3,
        "preview_steps": 1, "prompts": ("red <toy>",), "validation_split": "held_out", "text_encoder": True,
        "tokens": ("<toy>",), "prefix": "<toy>, ", "flip": True, "shuffle_tags": True, "ema": 0.9, "optimizer": "sgd",
        "optimizer_options": ("momentum=0.9",), "learning_rate": 0.5, "memory_check": False,
    }  # fmt: skip


def history(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, other: Path) -> None:
    ours, theirs = history(one), history(other)
    assert [entry["step"] for entry in ours] == [entry["step"] for entry in theirs] == list(range(1, STEPS + 1))
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, rel=5e-5)
        assert a["lr"] == b["lr"]
    for name in FILES:
        a, b = (load_file(out / "model" / name) for out in (one, other))
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=2e-6, msg=f"{name}: {key}")


@pytest.mark.slow  # of text-to-image runs, which share the loop, it is tested with the others
def test_two_processes_are_one(settings, tmp_path):
    def config(name: str, **cut: Any) -> LoraConfig:
        return LoraConfig.of(**settings, **cut, out=str(tmp_path / name))

    one = load_file(run(config("one", batch_size=4, checkpoint_every=1)) / FILES[0])
    assert any(value.abs().max() > 1e-3 for name, value in one.items() if "lora_B" in name)  # something is learnt
    there = config("two", batch_size=2)  # with accumulation it is proven of text-to-image runs
    assert exit_codes(start_processes(lambda process: run(there))) == [0, 0]
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert "validation_loss" in history(tmp_path / "two")[2]
