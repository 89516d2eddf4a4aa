"""A run that ends by its validations: at the same step with the same result, however often it was interrupted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from sd_ext.errors import InputError
from sd_ext.training.run.checkpoint import checkpoints, step_of
from sd_ext.training.run.early import StopSettings, Verdict, judge

from ..lora_cases import train

FILE = "pytorch_lora_weights.safetensors"
LOSSES = {2: 1.0, 4: 0.5, 6: 0.7, 8: 0.6, 10: 0.1}


def log(*losses: float) -> list[dict[str, float]]:
    return [{"step": 10 * n, "validation_loss": loss} for n, loss in enumerate(losses, 1)]


def test_the_least_loss_counts_and_how_long_ago_it_was():
    def said(entries, patience=2, share=0.0, every=10, steps=1000, first=0):
        return judge(entries, StopSettings(patience, share), every, steps, first)

    assert said([]) == Verdict()
    assert said(log(3, 2, 2.5, 2)) == Verdict(20, 2, 2)  # as good is no better
    assert said(log(3, 2, 1.99), share=0.01) == Verdict(20, 2, 1)
    assert said(log(3, 2, 1.97), share=0.01) == Verdict(30, 1.97, 0)
    assert said(log(3, float("nan"), 1)) == Verdict(30, 1, 0)
    assert said(log(float("nan"))) == Verdict(0, float("inf"), 1)
    assert said(log(1, 3, 2), first=10) == Verdict(30, 2, 0)  # the parent's does not count
    assert said([*log(3), {"step": 15, "validation_loss": 1.0}, {"step": 20, "loss": 0.0}]) == Verdict(10, 3, 0)
    assert said([*log(3), {"step": 15, "validation_loss": 1.0}], steps=15) == Verdict(15, 1, 0)


def weights(out: Path) -> dict[str, bytes]:
    return {name: t.numpy().tobytes() for name, t in load_file(out / "model" / FILE).items()}


@pytest.fixture
def settings(bases, picture_folder, tmp_path, monkeypatch) -> dict:
    """Of a run whose validations say what `LOSSES` do."""
    from sd_ext.training.lora.task import LoraTask

    monkeypatch.setattr(LoraTask, "validate", lambda task: {"validation_loss": LOSSES[task.at]})
    monkeypatch.setattr(LoraTask, "preview", lambda task: None)
    monkeypatch.setattr(LoraTask, "draw_base", lambda task, unet: [])
    monkeypatch.setattr(LoraTask, "draw_trained", lambda task: [])
    real = LoraTask.batch
    monkeypatch.setattr(
        LoraTask, "batch", lambda t, each, *more: (setattr(t, "at", each.step + 1), real(t, each, *more))[1]
    )
    return {
        "base": bases["sd15"], "data": str(picture_folder), "steps": 10, "validate_every": 2, "ema": 0.5, "keep": 1,
        "validation_split": "held_out", "lr_schedule": "constant", "cache_dir": str(tmp_path / "cache"),
        "checkpoint_every": 3,
    }  # fmt: skip


@pytest.mark.slow
def test_the_run_ends_early_with_its_best(settings, tmp_path, monkeypatch, capfd):
    out = tmp_path / "run"
    train(out=out, patience=2, **settings)
    assert "the result is that of step 4, whose validation loss of 0.5 is the least" in capfd.readouterr().out
    assert [step_of(path) for path in checkpoints(out / "checkpoints")] == [4, 8]  # the best, and the last
    assert json.loads((out / "model" / "training.json").read_text())["steps"] == 4
    to_four = tmp_path / "four"
    train(out=to_four, **{**settings, "steps": 4})
    assert weights(out) == weights(to_four)

    # Interrupted at each step, between checkpoint, log and end: the same result.
    from sd_ext.training.run import fit

    cut = tmp_path / "cut"
    real = fit.observe
    for at in (3, 5, 8):

        def stop(run, *more, at=at):
            ended = real(run, *more)
            if run.step == at:
                raise RuntimeError("cut")
            return ended

        monkeypatch.setattr(fit, "observe", stop)
        with pytest.raises(RuntimeError, match="cut"):
            train(out=cut, patience=2, **settings)
    monkeypatch.setattr(fit, "observe", real)
    capfd.readouterr()
    train(out=cut, patience=2, **settings)
    assert "so the run ends at step 8" in capfd.readouterr().out
    assert weights(cut) == weights(out)

    # With more patience the least comes last, and nothing is put back; without, the last step is the result.
    longer = tmp_path / "longer"
    train(out=longer, patience=3, **settings)
    train(out=tmp_path / "last", **settings)
    assert weights(longer) == weights(tmp_path / "last")
    with pytest.raises(InputError, match=r"other settings \(.*validate_every 2 -> 5"):
        train(out=longer, patience=3, **{**settings, "validate_every": 5})


def test_what_patience_needs_is_said(settings, tmp_path):
    for change, message in {
        "validation_split": "patience is for held-out pictures",
        "validate_every": "patience counts validations, and validate_every is 0",
    }.items():
        with pytest.raises(InputError, match=message):
            train(out=tmp_path / "none", patience=1, **{**settings, change: type(settings[change])()})
    with pytest.raises(InputError, match="min_improvement acts only with patience"):
        StopSettings(0, 0.1)
