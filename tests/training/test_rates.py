"""The finder of learning rates: what is trained, what is recommended, and why."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sd_ext.errors import InputError, TrainingError
from sd_ext.training import rates as module
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.rates import Measured, alike, branches, find, measured, recommend
from sd_ext.training.settings.command import parse

from .lora_cases import train
from .test_fork import here


def config_of(branch) -> LoraConfig:
    return parse(LoraConfig, branch.stage.arguments, "")[0]


def test_rates_around_the_settings_own_from_a_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    some, out, start = branches("embedded", ["--data", "x", "--steps", "40", "--validation-share", "0.1"])
    assert ([each.label for each in some], out, start) == (
        ["0.0001", "0.0003", "0.001", "0.003", "0.01"],
        Path("rates"),
        0,
    )
    config = config_of(some[0])
    assert (config.rate.learning_rate, config.rate.lr_schedule, config.rate.warmup, config.loop.steps) == (
        1e-4, "constant", 0, 40
    )  # fmt: skip
    assert (config.folder.out, config.cache.cache_dir) == ("rates/learning_rate-0.0001", "rates/cache")
    assert config.folder.validate_every == 10
    mine = tmp_path / "mine.toml"
    mine.write_text(
        "preset = 'sd15'\noptimizer = 'lion'\ndata = 'x'\npatience = 3\nvalidation_share = 0.2\nwarmup = 50\n"
    )
    some, out, _ = branches(str(mine), ["--out", "r", "--validate-every", "7"])
    assert [each.label for each in some][2] == "2e-05"
    assert (config_of(some[0]).stop.patience, config_of(some[0]).folder.validate_every) == (0, 7)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--optimizer", "prodigy"], "prodigy finds its learning rate itself"),
        (["--learning-rate", "1e-4"], "has one value only"),
        (["--learning-rate", "1e-4,fast"], "must be a number"),
        (["--steps", "few"], "must be a whole number"),
        (["--from", "x"], "leave out further files"),
        (["--learning-rates", "1,2"], "did you mean '--learning-rate'"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_trained(flags, message):
    with pytest.raises(InputError, match=message):
        branches("embedded", ["--data", "x", *flags])


def test_the_recommendation():
    def of(*pairs):
        return [Measured(rate, loss, 9, loss == float("inf")) for rate, loss in pairs]

    assert recommend(of(("1e-4", 3), ("1e-3", 1), ("1e-2", 2)), {}) == ("1e-3", "least validation loss, 1")
    chosen, why = recommend(of(("1e-4", 1), ("1e-3", 2)), {})
    assert (chosen, why.partition("; ")[2]) == ("1e-4", "it is the lowest that was tried: try lower ones too")
    chosen, why = recommend(of(("1e-3", 2), ("1e-2", 1)), {})
    assert (chosen, why.partition("; ")[2]) == ("1e-2", "it is the highest that was tried: try higher ones too")
    assert "tried" not in recommend(of(("1e-3", 2), ("1e-2", 1), ("1", float("inf"))), {})[1]  # a higher one failed
    same, worse = [2.0, 1.1, 0.9, 1.1, 0.9], [2.0, 1.3, 1.2, 1.3, 1.2]
    assert alike(same, [2, 1, 1, 1, 1]) and not alike(worse, [2, 1, 1, 1, 1])
    logs = {"1e-5": worse, "1e-4": same, "1e-3": [2, 1, 1, 1, 1]}
    chosen, why = recommend(of(("1e-5", 1.25), ("1e-4", 1.0001), ("1e-3", 1)), logs)
    assert (chosen, why) == ("1e-4", "the lowest that differs from 1e-3, of least training loss, by chance only")
    log = [{"step": n, "loss": 10 - n} for n in range(1, 5)]
    assert measured("1", log, False, "loss") == Measured("1", 6.5, 4)
    assert measured("1", log, True, "loss").loss == float("inf")


@pytest.mark.slow
def test_rates_from_a_run_and_from_settings(bases, picture_folder, tmp_path, monkeypatch):
    run = tmp_path / "run"
    settings = {"validate_every": 2, "validation_split": "held_out", "prompts": ("red bar",)}
    train(bases["sd15"], run, data=str(picture_folder), steps=2, **settings)
    monkeypatch.setattr(module, "run_stage", here)
    out, lines = find(str(run), ["--learning-rate", "0.01,0.02", "--steps", "4"])
    assert out == run.with_name("run-rates-2")
    said = json.loads((out / "rates.json").read_text())
    assert [each["steps"] for each in said["measured"]] == [4, 4]
    assert said["validated"] and said["recommended"] in (0.01, 0.02)
    assert lines[-1].startswith("recommended: --learning-rate 0.0")
    assert (out / "sheet.png").exists() and (out / "curves.png").exists()
    assert find(str(run), ["--learning-rate", "0.01,0.02", "--steps", "4"]) == (out, lines)

    # Without held-out pictures, from step 0; a rate that does not come to its end is no candidate.
    def fails(stage):
        here(stage) if "1e30" not in str(stage.result) else (_ for _ in ()).throw(TrainingError("not finite"))

    monkeypatch.setattr(module, "run_stage", fails)
    mine = tmp_path / "mine.toml"
    mine.write_text((run / "config.toml").read_text().replace('validation_split = "held_out"', ""))
    out, lines = find(str(mine), ["--learning-rate", "0.01,1e30,0.02", "--steps", "4", "--out", str(tmp_path / "r")])
    said = json.loads((out / "rates.json").read_text())
    assert not said["validated"] and said["measured"][1]["stopped"]
    assert "1e30: stopped after 0 steps; the reason is above" in lines
