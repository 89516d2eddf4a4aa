"""Runs that start from runs: the parent's bytes up to there, their own settings from there on."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sd_ext.errors import InputError, TrainingError
from sd_ext.training.configs import TextToImageConfig
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.run.checkpoint import checkpoints, load
from sd_ext.training.run.folder import IN_PLACE
from sd_ext.training.settings.config import every_setting
from sd_ext.training.settings.written import make_config
from sd_ext.training.train_text_to_image import TextToImageTask
from sd_ext.training.train_text_to_image import run as run_text_to_image

from ..conftest import image_settings

FILES = ("model.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")


@pytest.fixture
def settings(picture_folder, tiny_parts, tmp_path) -> dict:
    return image_settings(
        picture_folder, tiny_parts, steps=4, batch_size=2, log_every=1, checkpoint_every=2, keep=3,
        lr_schedule="constant", cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip


def train(settings: dict, out: Path, **more) -> Path:
    run_text_to_image(TextToImageConfig.of(**{**settings, "out": str(out), **more}))
    return out


def history(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]


def said(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if ".training.run." in record.name]


def same(one: Path, other: Path) -> bool:
    a, b = (load_file(out / "model" / "unet" / "diffusion_pytorch_model.safetensors") for out in (one, other))
    return all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def long(settings, tmp_path) -> Path:
    return train(settings, tmp_path / "long", steps=6)


def test_a_fork_is_its_parent_up_to_there(settings, long, tmp_path, caplog):
    # A fork with nothing changed is the run itself, and shares its bytes; it needs its parent no more once it is begun.
    fork = train(settings, tmp_path / "fork", from_=f"{long}@2", steps=6)
    assert same(fork, long)
    assert history(fork) == history(long)
    for name in FILES:
        assert os.path.samefile(*(out / "checkpoints" / "step-00000002" / name for out in (long, fork)))
    assert json.loads((fork / "run.json").read_text())["parent"]["step"] == 2
    assert not said(caplog)

    # One with another rate is the same up to there, and its own from there on.
    other = train(settings, tmp_path / "other", from_=f"{long}@2", learning_rate=1e-4, weight_decay=0.2, beta2=0.9)
    assert history(other)[:2] == history(long)[:2]
    assert [entry["lr"] for entry in history(other)[2:]] == [1e-4, 1e-4]
    group = load(other / "checkpoints" / "step-00000004")[1]["optimizer"]["groups"][0]
    assert (group["weight_decay"], group["betas"]) == (0.2, {"tuple": [0.9, 0.9]})
    assert not said(caplog)


def test_what_cannot_be_a_parent(settings, long, tmp_path):
    for source, message in {
        f"{long}@9": "no checkpoint of step 9, but of 2, 4, 6",
        f"{tmp_path}/nothing@2": "neither the folder of a run",
        str(long): "has done 6 steps, and steps is 4: set more",
        str(tmp_path / "new"): "neither the folder of a run",
        str(long / "run.json"): "a run of the text to image starts from no file",
    }.items():
        with pytest.raises(InputError, match=message):
            train(settings, tmp_path / "new", from_=source)
    with pytest.raises(InputError, match="is the folder of this run itself"):
        train(settings, long, steps=9, from_=str(long))
    with pytest.raises(InputError, match=r"channels is \(.*\) there and \(64, 64\) here.*; a run of other adapters"):
        train(settings, tmp_path / "wide", from_=f"{long}@2", channels=(64, 64))


@pytest.mark.slow
def test_what_a_fork_begins_anew_and_runs_that_are_extended(settings, long, tmp_path, caplog):
    # Another optimizer, and averages that the parent has not: begun anew, and said.
    train(settings, tmp_path / "sgd", from_=f"{long}@4", steps=5, optimizer="sgd", ema=0.0)
    assert "the optimizer begins anew: the checkpoint is of optimizer" in caplog.text
    caplog.clear()
    train(settings, tmp_path / "ema", from_=f"{tmp_path / 'sgd'}", steps=6)
    assert "no averaged weights; they begin here" in caplog.text
    caplog.clear()

    # In place: more steps at a constant rate are the longer run; of a falling rate they are refused.
    short = train(settings, tmp_path / "short")
    first = (short / "model" / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    train(settings, short, steps=6, batch_size=1, accumulation=2)
    train(settings, short, steps=6)
    assert "the result of 4 steps is now" in caplog.text
    kept = short / "model-00000004" / "unet" / "diffusion_pytorch_model.safetensors"
    assert kept.read_bytes() == first
    assert [entry["step"] for entry in history(short)] == [1, 2, 3, 4, 5, 6]
    extended = train(settings, tmp_path / "extended")
    train(settings, extended, steps=6)
    assert same(extended, long)
    for changed in ({"steps": 5}, {"batch_size": 4}, {"steps": 9, "lr_schedule": "cosine"}, {"learning_rate": 1.0}):
        with pytest.raises(InputError, match=rf"other settings .*--from {extended} to go on from this one"):
            train(settings, extended, **{"steps": 6, **changed})


def test_the_advice_after_a_loss_that_is_not_finite_works_as_printed(settings, tmp_path, monkeypatch):
    real = TextToImageTask.batch

    def poison(self, each, read, device):
        x, *rest = real(self, each, read, device)
        bad = each.step == self.poisoned and self.config.rate.learning_rate > 2e-3
        return (x * float("nan") if bad else x, *rest)

    monkeypatch.setattr(TextToImageTask, "batch", poison)
    for poisoned, before in ((1, 0), (3, 2)):
        monkeypatch.setattr(TextToImageTask, "poisoned", poisoned, raising=False)
        with pytest.raises(TrainingError) as caught:
            train(settings, tmp_path / f"run {poisoned}")
        words = shlex.split(str(caught.value).partition("more slowly, add: ")[2])
        flags = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
        given = {name: list(value) if isinstance(value, tuple) else value for name, value in settings.items()}
        config = make_config(TextToImageConfig, {**given, **flags}, "advice")
        assert config.rate.learning_rate == settings["learning_rate"] / 2
        run_text_to_image(config)
        assert [entry["step"] for entry in history(Path(config.folder.out))] == [1, 2, 3, 4]
        assert checkpoints(Path(config.folder.out) / "checkpoints")[0].name == "step-00000002"
        parent = json.loads((Path(config.folder.out) / "run.json").read_text())["parent"]
        assert (parent["step"] if parent else 0) == before


def test_what_may_change_in_place_is_flagged_where_it_is_declared():
    known = every_setting(TextToImageConfig)
    assert {name for name, each in known.items() if each.meta["in_place"]} == set(IN_PLACE)
    assert not any(each.meta["free"] and each.meta["in_place"] for each in known.values())
    page = (Path(__file__).parents[3] / "docs" / "runs.md").read_text()
    rows = [f"| `{name}` | {each.meta['in_place']} |" for name, each in known.items() if each.meta["in_place"]]
    free = [name.rstrip("_") for name, each in every_setting(LoraConfig).items() if each.meta["free"]]
    rows.append(f"| {', '.join(f'`{name}`' for name in free)} | always: they do not change the result |")
    assert "\n".join(rows) in page
