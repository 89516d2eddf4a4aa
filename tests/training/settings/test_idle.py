"""Settings that change nothing beside others are said by name, and those that act are not."""

from __future__ import annotations

import logging

import pytest

from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.settings.command import parse
from sd_ext.training.settings.config import every_setting
from sd_ext.training.settings.idle import RULES


def said(caplog, *flags):
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        parse(LoraConfig, ["--model", "m", "--data", "d", *flags], "")
    return [record.getMessage() for record in caplog.records if "changes nothing" in record.getMessage()]


@pytest.mark.parametrize(
    ("flags", "acting"),
    [
        (["--gamma", "3"], ["--loss-weighting", "min_snr"]),
        (["--huber-c", "0.2"], ["--loss", "huber"]),
        (["--huber-schedule", "snr"], ["--loss", "smooth_l1"]),
        (["--mask-floor", "0.1"], ["--masked-loss"]),
        (["--caption-variants", "4"], ["--shuffle-tags"]),
        (["--lr-cycles", "3"], ["--lr-schedule", "cosine_with_restarts"]),
        (["--lr-power", "2"], ["--lr-schedule", "polynomial"]),
        (["--pyramid-discount", "0.5"], ["--pyramid-iterations", "2"]),
        (["--class-images", "9"], ["--class-data", "c", "--class-prompt", "p"]),
        (["--validation-times", "8"], ["--validation-share", "0.1"]),
        (["--beta2", "0.5", "--optimizer", "sgd"], ["--optimizer", "adamw"]),
        (["--steps", "4", "--epochs", "3"], ["--epochs", "0"]),
    ],
)
def test_what_changes_nothing_is_said(caplog, flags, acting):
    (sentence,) = said(caplog, *flags)
    assert sentence.startswith(f"{flags[0][2:].replace('-', '_')} changes nothing: ")
    assert not said(caplog, *flags, *acting)


def test_defaults_say_nothing_and_every_rule_is_of_settings_that_are_there(caplog):
    assert not said(caplog)
    known = every_setting(LoraConfig)
    assert all(name in known for rule in RULES for name in (*rule.names, *rule.beside))
