"""One field, one flag, one line of help; what cannot work is refused with the setting's name."""

import subprocess
import sys
from dataclasses import dataclass, replace

import pytest

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.training.configs import AutoencoderConfig, TextEncoderConfig, TextToImageConfig
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.run.config import RunConfig
from sd_ext.training.settings.command import describe, parse, parser, run_command
from sd_ext.training.settings.config import Config, every_setting
from sd_ext.training.settings.setting import Settings, setting
from sd_ext.training.settings.written import flag, make_config

ALL = [AutoencoderConfig, TextEncoderConfig, TextToImageConfig, LoraConfig]


@pytest.mark.parametrize("cls", ALL)
def test_each_field_is_one_flag_with_one_line_of_help(cls):
    known = every_setting(cls)
    made = [action for action in parser(cls, "")._actions if action.dest in known]
    assert [action.option_strings for action in made] == [[flag(name)] for name in known]
    for each, action in zip(known.values(), made, strict=True):
        assert each.help
        assert each.help in action.help.replace("%%", "%")
        assert "\n" not in action.help
    lines = describe(cls()).splitlines()
    assert [line.split()[0] for line in lines] == [name.rstrip("_") for name in known]


def test_two_groups_with_a_setting_of_one_name_are_a_mistake():
    @dataclass(frozen=True)
    class One(Settings):
        steps: int = setting(1, "so many")

    @dataclass(frozen=True)
    class Twice(Config):
        one: One = One()
        other: One = One()

    with pytest.raises(TypeError, match="steps is in both one and other"):
        Twice.of(steps=2)


def test_a_value_goes_to_the_group_that_has_the_setting():
    config = LoraConfig.of(rank=4, steps=7, flip=True)
    assert (config.adapters.rank, config.loop.steps, config.data.flip) == (4, 7, True)
    assert config.change(steps=8).loop == replace(config.loop, steps=8)
    assert config.change(steps=8).adapters is config.adapters
    with pytest.raises(UnknownNameError, match=r"'stepz'; did you mean 'steps'"):
        config.change(stepz=8)


@pytest.mark.parametrize("cls", ALL)
def test_every_setting_can_be_given_as_a_flag_in_a_file_and_as_an_override(cls, tmp_path):
    """The default of each, said in all three ways, is the default."""

    def toml(value):
        if isinstance(value, tuple):
            return f"[{', '.join(map(toml, value))}]"
        return repr(value).replace("'", '"') if not isinstance(value, bool) else str(value).lower()

    def text(value):
        return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)

    config = cls()
    values = config.values()
    in_files = {name: each.meta["in_files"] for name, each in every_setting(cls).items()}
    file = tmp_path / "all.toml"
    file.write_text("".join(f"{name} = {toml(value)}\n" for name, value in values.items() if in_files[name]))
    flags = [part for name, value in values.items() for part in (flag(name), text(value))]
    overrides = [part for name, value in values.items() for part in ("--override", f"{name}={text(value)}")]
    for arguments in (["--config", str(file)], flags, overrides):
        assert parse(cls, arguments, "")[0] == config


@pytest.mark.parametrize("cls", ALL)
def test_an_unknown_setting_names_the_closest(cls, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text("[other]\nlearnin_rate = 1e-4\n")
    for arguments in (["--config", f"{file}#other"], ["--override", "learnin_rate=1e-4"]):
        with pytest.raises(UnknownNameError, match=r"learnin_rate.*did you mean 'learning_rate'") as caught:
            parse(cls, arguments, "")
        assert caught.value.closest[0] == "learning_rate"
    with pytest.raises(UnknownNameError, match=r"recipe\.toml"):
        parse(cls, ["--config", f"{file}#other"], "")


def test_resolution_in_a_file_is_one_number_or_several(tmp_path):
    file = tmp_path / "recipe.toml"
    for said, resolution in (("48", (48,)), ("[48, 64]", (48, 64)), ('"48,64"', (48, 64))):
        file.write_text(f"resolution = {said}\n")
        assert parse(TextToImageConfig, ["--config", str(file)], "")[0].pictures.resolution == resolution
    assert TextToImageConfig.of(resolution=48).pictures.resolution == (48,)
    assert parse(AutoencoderConfig, ["--resolution", "48"], "")[0].pictures.resolution == 48
    file.write_text("resolution = [48, 64]\n")
    with pytest.raises(InputError, match="resolution is"):
        parse(AutoencoderConfig, ["--config", str(file)], "")


def test_flags_file_and_override(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text("[text_to_image]\nsteps = 7\nbatch_size = 3\nchannels = [32, 64]\nattention = [0, 1]\nseed = 1\n")
    arguments = ["--config", str(file), "--batch-size", "5", "--seed", "2", "--override", "seed=3", "--flip"]
    config, dry = parse(TextToImageConfig, arguments, "")
    values = [config.values()[name] for name in ("steps", "batch_size", "seed", "channels", "flip")]
    assert values == [7, 5, 3, (32, 64), True]
    assert not dry
    file.write_text("[text_to_image]\nsteps = 7\n[other]\nsteps = 8\n")
    assert parse(TextToImageConfig, ["--config", f"{file}#other"], "")[0].loop.steps == 8
    with pytest.raises(InputError, match=r"has no table \[phrases\]"):
        parse(TextToImageConfig, ["--config", f"{file}#phrases"], "")
    file.write_text("steps = 9\n")
    assert parse(AutoencoderConfig, ["--config", str(file), "--dry-run"], "") == (AutoencoderConfig.of(steps=9), True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 1}, "unknown setting in here: 'stepz'; did you mean 'steps'"),
        ({"steps": "many"}, "steps is 'many'; it must be a whole number"),
        ({"steps": 1.5}, "steps is 1.5; it must be a whole number"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"batch_size": -4}, "batch_size is -4"),
        ({"seed": -1}, "seed is -1; it must be 0 or more"),
        ({"learning_rate": True}, "learning_rate is True; it must be a number"),
        ({"resolution": True}, "resolution is True; it must be a list"),
        ({"resolution": ()}, "resolution is (); it must be at least 1"),
        ({"learning_rate": "nan"}, "learning_rate is nan; it must be a finite number"),
        ({"learning_rate": 0}, "learning_rate is 0.0; it must be more than 0"),
        ({"ema": 1.0}, "ema is 1.0"),
        ({"flip": "maybe"}, "flip is 'maybe'; it must be true or false"),
        ({"mixed_precision": "fp8"}, "mixed_precision is 'fp8'; it can be no, bf16, fp16"),
        ({"channels": "32,x"}, "channels is '32,x'; it must be a list"),
        ({"attention": (1,)}, "attention has 1 levels, channels 2"),
        ({"text_dropout": 1.5}, "text_dropout is 1.5"),
        ({"prediction_type": "score"}, "prediction_type is 'score'; it can be auto, epsilon, v_prediction, sample"),
        ({"optimizer": "adamm"}, "unknown optimizer 'adamm'; did you mean 'adamw'"),
        ({"optimizer_options": "eps"}, "optimizer option 'eps': write name=value"),
        ({"validation_share": 1.0}, "validation_share is 1.0; it must be from 0 up to, not including, 1"),
        ({"caption_variants": 0}, "caption_variants is 0; it must be at least 1"),
        ({"huber_c": 0}, "huber_c is 0.0; it must be more than 0"),
        ({"bucket_ratio": 0.5}, "bucket_ratio is 0.5; it must be 1 or more"),
    ],
)
def test_what_cannot_work_is_named(values, message):
    with pytest.raises(InputError) as caught:
        make_config(TextToImageConfig, values, "here")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"timestep_min": 500, "timestep_max": 500},
        {"crop": "random"},
        {"zero_snr": True, "prediction_type": "epsilon"},
        {"validation_share": 0.1, "validation_split": "held_out"},
        {"checkpoint_blocks": "down"},
        {"keep_tokens": 1},
        {"tag_separator": ";"},
        {"optimizer": "schedulefree-adamw", "lr_schedule": "cosine"},
        {"optimizer": "schedulefree-adamw", "ema": 0.9},
    ],
)
def test_settings_that_contradict_each_other_are_refused(values):
    with pytest.raises(InputError, match="settings contradict each other"):
        make_config(TextToImageConfig, values, "here")
    for name in list(values):  # one of them alone, or with what it needs, is fine
        if len(values) == 2:
            ease = {"lr_schedule": "constant", "ema": 0.0} if "optimizer" in values else {}
            make_config(TextToImageConfig, {**{k: v for k, v in values.items() if k != name}, **ease}, "here")


def test_malformed_override_and_missing_file():
    with pytest.raises(InputError, match="write key=value"):
        parse(AutoencoderConfig, ["--override", "steps"], "")
    with pytest.raises(InputError, match=r"nowhere\.toml is not there"):
        parse(AutoencoderConfig, ["--config", "nowhere.toml"], "")


def test_dry_run_prints_and_runs_nothing(capsys):
    run_command(AutoencoderConfig, "no.such.module:run", ["--steps", "12", "--dry-run"], "")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(every_setting(AutoencoderConfig))
    assert next(line for line in lines if line.startswith("steps")).split()[1] == "12"
    assert describe(AutoencoderConfig.of(steps=12)).splitlines() == lines


def test_result_settings_are_those_that_change_a_result():
    """Where data lie and what is looked at do not; a run's samples and base are recorded by their content instead."""
    settings = RunConfig.of(out="there", workers=3).result_settings()
    assert settings.keys().isdisjoint({"out", "workers", "keep", "checkpoint_every", "log_every"})
    assert settings.keys() >= {"seed", "steps", "batch_size", "accumulation", "learning_rate", "ema"}
    whole = TextToImageConfig.of(data="somewhere").result_settings().keys()
    assert whole.isdisjoint(
        {"data", "model", "autoencoder", "prompts", "preview_steps", "validation_data", "cache_dir"}
    )
    assert whole >= {"cache_dtype", "shuffle_tags", "loss_weighting", "timestep_power", "rephrase", "flip"}


def test_settings_import_no_torch():
    modules = "sd_ext.training.settings.command, sd_ext.training.from_scratch, sd_ext.cli.train"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
