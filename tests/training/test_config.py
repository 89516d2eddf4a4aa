"""One field, one flag, one line of help; what cannot work is refused with the setting's name."""

import subprocess
import sys
from dataclasses import fields

import pytest

from sd_ext.errors import InputError
from sd_ext.training.config_cli import describe, make_config, parse, parser, run_command
from sd_ext.training.configs import AutoencoderConfig, RunConfig, TextEncoderConfig, TextToImageConfig, result_settings

ALL = [AutoencoderConfig, TextEncoderConfig, TextToImageConfig]


@pytest.mark.parametrize("cls", ALL)
def test_each_field_is_a_flag_with_help(cls):
    text = parser(cls, "").format_help()
    for spec in fields(cls):
        assert "--" + spec.name.replace("_", "-") in text
        assert spec.metadata["help"]


def test_flags_file_and_override(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text("[text_to_image]\nsteps = 7\nbatch_size = 3\nchannels = [32, 64]\nattention = [0, 1]\nseed = 1\n")
    arguments = ["--config", str(file), "--batch-size", "5", "--seed", "2", "--override", "seed=3", "--flip"]
    config, dry = parse(TextToImageConfig, arguments, "")
    assert (config.steps, config.batch_size, config.seed, config.channels, config.flip) == (7, 5, 3, (32, 64), True)
    assert not dry
    file.write_text("[text_to_image]\nsteps = 7\n[other]\nsteps = 8\n")
    assert parse(TextToImageConfig, ["--config", f"{file}#other"], "")[0].steps == 8
    with pytest.raises(InputError, match=r"has no table \[phrases\]"):
        parse(TextToImageConfig, ["--config", f"{file}#phrases"], "")
    file.write_text("steps = 9\n")
    assert parse(AutoencoderConfig, ["--config", str(file), "--dry-run"], "") == (AutoencoderConfig(steps=9), True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 1}, "unknown setting stepz"),
        ({"steps": "many"}, "steps is 'many'; it must be a whole number"),
        ({"steps": 1.5}, "steps is 1.5; it must be a whole number"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"batch_size": -4}, "batch_size is -4"),
        ({"learning_rate": "nan"}, "learning_rate is nan; it must be a finite number"),
        ({"learning_rate": 0}, "learning_rate is 0.0; it must be more than 0"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"flip": "maybe"}, "flip is 'maybe'; it must be true or false"),
        ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8'; it can be no, bf16, fp16"),
        ({"channels": "32,x"}, "channels is '32,x'; it must be a list"),
        ({"attention": (1,)}, "attention has 1 levels, channels 2"),
        ({"text_dropout": 1.5}, "text_dropout is 1.5"),
        ({"prediction_type": "score"}, "prediction_type is 'score'; it can be epsilon, v_prediction, sample"),
    ],
)
def test_what_cannot_work_is_named(values, message):
    with pytest.raises(InputError) as caught:
        make_config(TextToImageConfig, values, "here")
    assert message in str(caught.value)


def test_malformed_override_and_missing_file():
    with pytest.raises(InputError, match="write key=value"):
        parse(AutoencoderConfig, ["--override", "steps"], "")
    with pytest.raises(InputError, match=r"cannot read nowhere.toml"):
        parse(AutoencoderConfig, ["--config", "nowhere.toml"], "")


def test_dry_run_prints_and_runs_nothing(capsys):
    run_command(AutoencoderConfig, "no.such.module:run", ["--steps", "12", "--dry-run"], "")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(fields(AutoencoderConfig))
    assert next(line for line in lines if line.startswith("steps")).split()[1] == "12"
    assert describe(AutoencoderConfig(steps=12)).splitlines() == lines


def test_result_settings_are_those_that_change_a_result():
    settings = result_settings(RunConfig(data="somewhere", out="there", workers=3))
    assert settings.keys().isdisjoint({"data", "out", "workers", "keep", "checkpoint_every", "log_every"})
    assert settings.keys() >= {"seed", "steps", "batch_size", "accumulation", "learning_rate", "ema"}


def test_settings_import_no_torch():
    modules = "sd_ext.training.config_cli, sd_ext.training.from_scratch, sd_ext.cli.train"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
