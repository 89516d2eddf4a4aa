"""An optimizer preset is one entry: help, memory, and the learning rate that is used follow from it."""

from __future__ import annotations

import sys

import pytest
import torch

from sd_ext.errors import InputError
from sd_ext.training.configs import AutoencoderConfig, TextToImageConfig
from sd_ext.training.from_scratch import find_recipe, plan
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.estimate import estimate
from sd_ext.training.optimizer.make import find_class
from sd_ext.training.optimizer.names import PRESETS, Preset, known_packages
from sd_ext.training.run.machine import check_machine
from sd_ext.training.settings.command import describe, parse, parser

from ..lora_cases import a_task


@pytest.fixture
def toy(monkeypatch) -> Preset:
    """A preset that is nowhere but in the table."""
    preset = Preset("torch.optim.Adam", "a toy that wants half of AdamW's rate", state_bytes=100, rate_share=0.5)
    monkeypatch.setitem(PRESETS, "toy", preset)
    return preset


def rate_line(config) -> str:
    return next(line for line in describe(config).splitlines() if line.startswith("learning_rate "))


@pytest.mark.parametrize("cls", [AutoencoderConfig, TextToImageConfig, LoraConfig])
def test_help_lists_every_preset_with_its_line(cls, toy):
    [action] = [action for action in parser(cls, "")._actions if action.dest == "optimizer"]
    assert action.help == f"{', '.join(PRESETS)}, or a class package.module.Class [adamw]"
    assert "toy" in PRESETS
    shown = parser(cls, "").format_help()
    for name, known in PRESETS.items():
        assert known.help
        assert any(line.split() == [name, *known.help.split()] for line in shown.splitlines())


def test_the_estimate_has_the_presets_state(toy, tmp_path, bases, picture_folder):
    def training(optimizer: str) -> int:
        found = estimate(
            a_task(tmp_path, bases["sd15"], picture_folder, optimizer=optimizer).workload, torch.device("cpu")
        )
        return found.training // found.trained

    assert training("toy") - training("sgd") == 96
    assert training("toy") - training("adamw") == 92


def test_the_rate_that_is_used_is_the_presets(toy):
    for cls in (AutoencoderConfig, LoraConfig):
        usual = cls().rate.learning_rate
        assert cls.of(optimizer="toy").rate.learning_rate == usual / 2
        assert cls.of(optimizer="sgd").rate.learning_rate == pytest.approx(100 * usual)
        assert cls.of(optimizer="prodigy").rate.learning_rate == 1.0
        assert cls.of(optimizer="lion").rate.learning_rate < usual / 3
        assert cls.of(optimizer="toy", learning_rate=0.3).rate.learning_rate == 0.3
    assert find_class("toy") is torch.optim.Adam


def test_a_dry_run_says_the_rate_and_why(toy):
    assert rate_line(LoraConfig.of(optimizer="toy")).split()[1] == "5e-05"
    assert "(toy: a toy that wants half of AdamW's rate)" in rate_line(LoraConfig.of(optimizer="toy"))
    assert rate_line(LoraConfig.of(optimizer="prodigy")).split()[1] == "1.0"
    assert "leave it at 1" in rate_line(LoraConfig.of(optimizer="prodigy", learning_rate=0.1))
    assert rate_line(LoraConfig()).endswith("the highest learning rate")


def test_a_rate_counts_for_the_optimizer_it_was_chosen_for(toy, tmp_path):
    """A preset's is AdamW's; what a person writes, in a file or as a flag, is meant as it stands."""

    def rate(*arguments: str) -> float:
        return parse(LoraConfig, arguments, "")[0].rate.learning_rate

    assert rate("embedded") == 1e-3
    assert rate("embedded", "--optimizer", "toy") == 5e-4
    assert rate("embedded", "--optimizer", "prodigy") == 1.0
    file = tmp_path / "own.toml"
    file.write_text('preset = "embedded"\nlearning_rate = 2e-3\n')
    assert rate(str(file), "--optimizer", "toy") == 2e-3
    file.write_text('preset = "embedded"\noptimizer = "prodigy"\n')
    assert rate(str(file)) == 1.0
    assert rate(str(file), "--learning-rate", "0.5") == 0.5
    assert LoraConfig.of(optimizer="prodigy").change(optimizer="adamw").rate.learning_rate == 1e-4
    assert LoraConfig.of(optimizer="prodigy", learning_rate=0.5).change(steps=9).rate.learning_rate == 0.5


@pytest.mark.parametrize("path", ["prodigyopt.Prodigy", "dadaptation.DAdaptSGD", "schedulefree.SGDScheduleFree"])
def test_a_class_by_its_path_has_the_ways_of_its_kin(path, tmp_path):
    """Prodigy at AdamW's 1e-4 would train nothing, and Schedule-Free with a cosine is refused."""
    config = LoraConfig.of(optimizer=path)
    kin = next(known for known in PRESETS.values() if known.path.split(".")[0] == path.split(".")[0])
    assert config.rate.learning_rate == kin.usual_rate(1e-4)
    assert (config.rate.lr_schedule == "constant") == kin.constant
    assert config.optimizer.preset.path == path


def test_what_averages_by_itself_brings_a_constant_rate_and_no_averages_of_ours(tmp_path):
    for cls in (AutoencoderConfig, TextToImageConfig, LoraConfig):
        config = cls.of(optimizer="schedulefree-adamw")
        assert (config.rate.lr_schedule, config.loop.ema) == ("constant", 0.0)
        back = config.change(optimizer="adamw")
        assert (back.rate.lr_schedule, back.loop.ema) == (cls().rate.lr_schedule, cls().loop.ema)
        for wrong in ({"lr_schedule": "cosine"}, {"ema": 0.9}):
            with pytest.raises(InputError, match=r"schedulefree-adamw averages .*; leave out"):
                cls.of(optimizer="schedulefree-adamw", **wrong)
    file = tmp_path / "own.toml"
    file.write_text('preset = "sdxl"\noptimizer = "schedulefree-adamw"\n')
    assert parse(LoraConfig, [str(file)], "")[0].rate.lr_schedule == "constant"


def test_a_rate_that_switches_off_the_search_is_said():
    assert LoraConfig.of(optimizer="prodigy").training() == "prodigy, learning rate 1, cosine"
    assert "its own is 1" in LoraConfig.of(optimizer="prodigy", learning_rate=1e-4).training()
    assert "warm-up" not in LoraConfig.of(steps=100, warmup=100).training()
    short = LoraConfig.of(steps=50, warmup=200, learning_rate=1e-4)
    assert "the run ends within the warm-up of 200 steps, so it gets no higher than 2.5e-05" in short.training()


def test_rates_apart_are_refused_only_where_someone_asked_for_them():
    words = {"tokens": ("<toy>",), "text_encoder": True}
    assert LoraConfig.of(optimizer="prodigy", **words).token_rate == 1.0
    assert LoraConfig.of(**words).token_rate == 5e-4
    assert LoraConfig.of(optimizer="lion", **words).token_rate == pytest.approx(1e-4)
    assert LoraConfig.of(optimizer="prodigy", block_rates=("mid_block=0",)).adapters.block_rates
    apart = {"lora_plus": 4.0, "token_learning_rate": 0.1, "text_encoder_learning_rate": 0.1,
             "block_rates": ("mid_block=0.5",)}  # fmt: skip
    for name, value in apart.items():
        with pytest.raises(InputError, match=f"prodigy finds one rate for all; leave out {name}$"):
            LoraConfig.of(optimizer="prodigy", **words, **{name: value})


# Packages that nobody has vouched for.


@pytest.fixture
def strange(tmp_path, monkeypatch):
    """A module that tells when it is imported, and a file of settings that names an optimizer of it."""
    (tmp_path / "strange_optimizers.py").write_text(
        "import torch\nfrom pathlib import Path\n"
        "Path(__file__).with_suffix('.ran').touch()\nclass Own(torch.optim.SGD):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a.toml").write_text('optimizer = "strange_optimizers.Own"\n')
    yield tmp_path
    sys.modules.pop("strange_optimizers", None)


def test_a_strangers_file_imports_nothing(strange):
    ran = strange / "strange_optimizers.ran"
    for cls in (LoraConfig, AutoencoderConfig):
        with pytest.raises(InputError, match=r"would import the package strange_optimizers.*add --allow-import"):
            parse(cls, [str(strange / "a.toml")], "")
        config, _ = parse(cls, [str(strange / "a.toml"), "--allow-import"], "")
        assert not ran.exists()
    check_machine(config.change(device="cpu"))
    assert ran.exists()


def test_a_file_cannot_allow_it_itself(strange):
    (strange / "a.toml").write_text('optimizer = "strange_optimizers.Own"\nallow-import = true\n')
    with pytest.raises(
        InputError, match="allow_import cannot stand in a file; give --allow-import on the command line"
    ):
        parse(LoraConfig, [str(strange / "a.toml")], "")
    for override in ("allow_import=true", "allow-import=yes"):
        parse(LoraConfig, ["--optimizer", "strange_optimizers.Own", "--override", override], "")


def test_known_packages_are_those_of_the_presets(toy):
    packages = {"torch", "transformers", "bitsandbytes", "prodigyopt", "dadaptation", "lion_pytorch", "schedulefree"}
    assert set(known_packages()) == packages
    for name in (*PRESETS, "torch.optim.RAdam", "schedulefree.SGDScheduleFree"):
        assert LoraConfig.of(optimizer=name, ema=0.0, lr_schedule="constant").optimizer.optimizer == name


def test_no_install_hint_for_a_name_nobody_knows():
    with pytest.raises(InputError, match="cannot be imported") as error:
        find_class("no_such_package.Own")
    assert "pip install" not in str(error.value)


def test_a_package_that_fails_while_it_is_imported(strange):
    (strange / "strange_optimizers.py").write_text("1 / 0")
    with pytest.raises(InputError, match=r"cannot be imported \(ZeroDivisionError"):
        find_class("strange_optimizers.Own")


def test_a_recipe_from_a_stranger_imports_nothing_either(strange):
    recipe = strange / "own.toml"
    text = find_recipe("cpu").read_text()
    recipe.write_text(text.replace("[autoencoder]", '[autoencoder]\noptimizer = "strange_optimizers.Own"'))
    with pytest.raises(InputError, match="add --allow-import"):
        plan(strange / "out", recipe)
    assert "strange_optimizers.Own" in plan(strange / "out", recipe, allow_import=True)
    assert not (strange / "strange_optimizers.ran").exists()
