"""What trackers are told: all settings, metrics and previews, in files inside the run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.run.trackers import as_table, begin, identity, log_preview, plain


def config(tmp_path: Path, **more) -> LoraConfig:
    (tmp_path / "mine").mkdir(exist_ok=True)
    return LoraConfig.of(out=str(tmp_path / "mine"), rank=3, prompts=("a fox --w 64",), **more)


def test_settings_are_plain_and_complete(tmp_path):
    settings = plain(config(tmp_path, targets=("attention", "resnet")))
    assert {
        "rank": 3,
        "prompts": "a fox --w 64",
        "from": "",
        "targets": "attention, resnet",
    }.items() <= settings.items()
    assert len(settings) == len(LoraConfig().values())
    assert all(isinstance(value, (bool, int, float, str)) for value in settings.values())
    table = as_table({"batch_size": 4, "prefix": "a|b"})
    assert table.splitlines()[2:] == ["| `--batch-size` | 4 |", "| `--prefix` | a\\|b |"]


def test_wandb_gets_project_name_folder_settings_and_goes_on(tmp_path):
    told = []

    def accelerator():
        return SimpleNamespace(
            is_main_process=True, log_with=["wandb"], trackers=[], init_trackers=lambda *given: told.append(given)
        )

    begin(accelerator(), config(tmp_path, tracker="wandb", project="foxes"), 0)
    begin(accelerator(), config(tmp_path, tracker="wandb", project="foxes", run_name="slow"), 5)
    (project, settings, first), (_, _, second) = told
    assert (project, settings["rank"]) == ("foxes", 3)
    assert [options["wandb"]["name"] for options in (first, second)] == ["mine", "slow"]
    assert first["wandb"]["dir"] == str(tmp_path / "mine" / "logs")
    assert first["wandb"]["id"] == second["wandb"]["id"] == identity(tmp_path / "mine" / "logs" / "wandb.id")


@pytest.mark.parametrize("name", ["tensorboard", pytest.param("wandb", marks=pytest.mark.slow)])
def test_files_stay_inside_the_runs_folder(tmp_path, monkeypatch, name):
    pytest.importorskip(name)
    from accelerate import Accelerator

    home = tmp_path / "home"
    for variable in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(variable, str(home))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    settings = config(tmp_path, tracker=name, project="foxes", run_name="first")
    accelerator = Accelerator(cpu=True, log_with=name, project_dir=settings.folder.out)
    begin(accelerator, settings, 0)
    accelerator.log({"loss": 0.25}, step=1)
    log_preview(accelerator, Image.new("RGB", (8, 8), "red"), 1)
    if name == "wandb":
        run = accelerator.get_tracker("wandb", unwrap=True)
        assert (run.project, run.name, run.config["rank"]) == ("foxes", "first", 3)
    accelerator.end_training()
    logs = tmp_path / "mine" / "logs"
    if name == "wandb":
        assert list(logs.glob("wandb/offline-run-*/*.wandb"))
        assert list(logs.glob("wandb/offline-run-*/files/media/images/preview_1_*.png"))
    else:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        events = EventAccumulator(str(logs))
        events.Reload()
        assert events.Scalars("loss")[0].value == 0.25
        assert events.Tags()["images"] == ["preview"]
        assert b"| `--rank` | 3 |" in events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0]
    outside = [path for path in tmp_path.rglob("*") if path.is_file() and logs not in path.parents]
    assert outside == [], json.dumps([str(path) for path in outside])
