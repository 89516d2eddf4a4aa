"""The settings that a run keeps are read as they were."""

import pytest

from sd_ext.errors import InputError
from sd_ext.training.configs import AutoencoderConfig, TextToImageConfig
from sd_ext.training.data.several import DataSet
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.settings.command import parse
from sd_ext.training.settings.kept import keep_settings, kept_settings

ODD = 'a "b" \\ é 🦊\n\t\x7f\x00'.replace("\x00", "")


def test_all_settings_come_back(tmp_path):
    for config in (
        LoraConfig.of(instance_prompt=ODD, prompts=(ODD, ", "), optimizer="prodigy", tokens=("<a>",), prefix="<a>"),
        LoraConfig.of(optimizer="schedulefree-adamw"),
        LoraConfig.of(sets=(DataSet("a b", prefix=ODD, flip=True), DataSet("c", weight=0.5)), from_="runs/a@3"),
        TextToImageConfig.of(channels=(8, 16), attention=(0, 1), lr_end=1e-7, flip=True),
        AutoencoderConfig.of(out="a/b"),
    ):
        keep_settings(config, tmp_path / "config.toml")
        assert kept_settings(type(config), tmp_path / "config.toml") == config
        assert parse(type(config), [str(tmp_path / "config.toml")], "") == (config, False)


def test_what_is_trusted_on_the_command_line_is_not_kept(tmp_path):
    keep_settings(LoraConfig.of(optimizer="strange.Opt", allow_import=True), tmp_path / "config.toml")
    assert "allow_import" not in (tmp_path / "config.toml").read_text()
    with pytest.raises(InputError, match="would import the package strange"):
        kept_settings(LoraConfig, tmp_path / "config.toml")
    with pytest.raises(InputError, match="holds the settings of lora, not of autoencoder"):
        kept_settings(AutoencoderConfig, tmp_path / "config.toml")


def test_a_name_that_is_no_text_is_left_out(tmp_path):
    keep_settings(LoraConfig.of(out="caf\udce9"), tmp_path / "config.toml")
    assert "# out is no text" in (tmp_path / "config.toml").read_text()
    assert kept_settings(LoraConfig, tmp_path / "config.toml") == LoraConfig.of()
