"""What is checked before the Hub is asked for a base model, and how a plan is printed."""

from __future__ import annotations

import pytest
import torch

from sd_ext.errors import InputError
from sd_ext.training import train_text_to_image
from sd_ext.training.configs import TextToImageConfig
from sd_ext.training.diffusion.samples import on_hub
from sd_ext.training.few_step.config import FewStepConfig
from sd_ext.training.lora import begin
from sd_ext.training.lora.begin import checked_task
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.plan import duration, matrix_speed
from sd_ext.training.settings.command import run_command
from sd_ext.training.slider.config import SliderConfig


def test_data_that_cannot_be_used_stop_a_run_before_the_hub_is_asked(picture_folder, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(begin, "find_trainable", lambda *given: asked.append(given) or (_ for _ in ()).throw(KeyError))
    settings = {"device": "cpu", "tracker": "none", "model": "someone/model", "out": str(tmp_path / "run")}
    (tmp_path / "empty").mkdir()
    for data in ("nowhere", str(tmp_path / "empty")):
        with pytest.raises(InputError):
            checked_task(LoraConfig.of(data=data, **settings))
    with pytest.raises(InputError, match="none of 11 pictures"):
        checked_task(LoraConfig.of(data=str(picture_folder), min_size=99, **settings))
    assert not asked
    with pytest.raises(KeyError):
        checked_task(LoraConfig.of(data=str(picture_folder), resolution=(32,), bucket_step=8, **settings))
    assert asked == [("someone/model", "", "")]
    assert [on_hub(name) for name in ("embedded", str(tmp_path), "someone/model", "")] == [False, False, True, False]


def test_so_it_is_for_every_script(tmp_path, monkeypatch):
    for module in (begin, train_text_to_image):
        monkeypatch.setattr(module, "find_trainable", lambda *given: pytest.fail("the Hub was asked"))
    settings = {"device": "cpu", "model": "someone/model", "data": "nowhere", "out": str(tmp_path / "run")}
    for config in (FewStepConfig.of(**settings), SliderConfig.of(**settings, positive="red {}")):
        with pytest.raises(InputError, match="nowhere"):
            checked_task(config)
    with pytest.raises(InputError, match="a slider has two ends"):
        checked_task(SliderConfig.of(**settings))
    with pytest.raises(InputError, match="nowhere"):
        train_text_to_image.run(TextToImageConfig.of(**settings))


def test_what_is_wrong_with_a_dry_run_is_said_before_its_settings(tmp_path, capsys):
    with pytest.raises(InputError, match="nowhere"):
        run_command(LoraConfig, "", ["embedded", "--data", "nowhere", "--device", "cpu", "--dry-run"], "")
    assert capsys.readouterr().out == ""


def test_times_and_speeds():
    assert [duration(seconds) for seconds in (3, 119, 120, 7199, 7200, 172_800)] == [
        "3 s", "119 s", "2.0 min", "120.0 min", "2.0 h", "2.0 days"
    ]  # fmt: skip
    assert matrix_speed(torch.device("cpu"), torch.float32, 0.01) > 1e6
