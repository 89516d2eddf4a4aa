"""Branches of a run: what is trained, and what compares them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from sd_ext.errors import InputError
from sd_ext.training import fork as module
from sd_ext.training import train_lora
from sd_ext.training.fork import branches_of, fork
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.run.history import read_history
from sd_ext.training.settings.command import parse

from .conftest import forget_accelerate_state
from .lora_cases import train


@pytest.fixture(scope="module")
def run(bases, picture_folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("fork") / "run"
    settings = {"validate_every": 2, "validation_split": "held_out", "prompts": ("red bar", "blue bar"), "log_every": 1}
    train(bases["sd15"], out, data=str(picture_folder), steps=2, checkpoint_every=1, **settings)
    return out


def here(stage) -> None:
    """In this process, which has imported everything."""
    config, _ = parse(LoraConfig, stage.arguments, "")
    forget_accelerate_state()
    train_lora.run(config)


@pytest.mark.slow
def test_branches_are_trained_and_compared(run, monkeypatch):
    started = []
    monkeypatch.setattr(module, "run_stage", lambda stage: (started.append(stage.result.parent.name), here(stage)))
    out, lines = fork(f"{run}@1", ["--learning-rate", "0.02, 0.01", "--steps", "3", "--keep", "9"])
    assert out == run.with_name("run-fork-1")
    assert started == ["learning_rate-0.02", "learning_rate-0.01"]
    logs = [read_history(out / name / "history.jsonl") for name in started]
    assert logs[0][0] == logs[1][0] == read_history(run / "history.jsonl")[0]
    assert [log[-1]["step"] for log in logs] == [3, 3]
    assert logs[0][-1]["validation_loss"] != logs[1][-1]["validation_loss"]
    for name in started:
        weights = Path("checkpoints", "step-00000001", "model.safetensors")
        assert os.path.samefile(run / weights, out / name / weights)
    assert [line.partition(":")[0] for line in lines] == ["0.02", "0.01"]
    assert all("validation loss" in line and "at step 3" in line for line in lines)
    with Image.open(out / "sheet.png") as sheet, Image.open(out / "curves.png") as curves:
        assert sheet.width > 2 * 64 and sheet.height > 2 * 64 and curves.size == (700, 400)
        first = Image.open(out / started[0] / "model" / "samples" / "0001.png").convert("RGB").tobytes()
        boxes = [(x, y, x + 64, y + 64) for x in range(sheet.width - 63) for y in range(14, 24)]
        assert any(sheet.crop(box).tobytes() == first for box in boxes)
    assert fork(f"{run}@1", ["--learning-rate", "0.02,0.01", "--steps", "3", "--keep", "9"]) == (out, lines)
    assert len(started) == 2  # complete branches are skipped


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "0 flags have several values"),
        (["--learning-rate", "1,2", "--weight-decay", "0,1"], "2 flags have several values"),
        (["--learning-rate", "1,"], "has one value only"),
        (["--learning-rate", "1,fast"], "it must be a number"),
        (["--learning-rate", "1,-1"], "it must be more than 0"),
        (["--learning-rate", "1,2", "--steps", "2"], "has done 2 steps, and steps is 2: set more"),
        (["--rank", "2,3", "--steps", "4"], r"rank is 2 there and 3 here.*starts from a LoRA"),
        (
            ["--alpha", "0,4", "--steps", "4"],
            "alpha is 0.0 there and 4.0 here, and a checkpoint goes on with what it was",
        ),
        (["--conv-rank", "0,3", "--steps", "4"], "conv_rank is 0 there and 3 here"),
        (["--learning-rates", "1,2"], "did you mean '--learning-rate'"),
        (["--learning-rate", "1,2", "--from", "x"], "settings are those of the run"),
        (["mine.toml", "--learning-rate", "1,2"], "settings are those of the run"),
    ],
)
def test_what_cannot_be_branched_is_said_before_anything_is_trained(run, flags, message):
    with pytest.raises(InputError, match=message):
        branches_of(str(run), flags)
    with pytest.raises(InputError, match="no checkpoint of step 9"):
        branches_of(f"{run}@9", flags)


def test_the_runs_own_folder_is_not_that_of_its_branches(run):
    with pytest.raises(InputError, match="is the folder of the run itself"):
        branches_of(str(run), ["--out", str(run), "--learning-rate", "1,2"])
