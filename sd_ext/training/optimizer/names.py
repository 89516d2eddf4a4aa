"""Optimizers by name or class path. An optimizer that has a name is one entry of `PRESETS`, and nothing elsewhere.

Imports no torch, so that settings can be checked at once.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sd_ext.errors import InputError, UnknownNameError


@dataclass(frozen=True)
class Preset:
    """What is known of an optimizer that has a name.

    Args:
        path: its class.
        help: one line for the reader of `--help`.
        options: of its constructor, unless others are given.
        package: to install with pip; empty where sd_ext already needs it.
        state_bytes: what it keeps for each trained number, in bytes.
        learning_rate: the one its authors mean to be left alone; None where it follows AdamW's.
        rate_share: its customary learning rate as a share of AdamW's.
        constant: it wants a constant learning rate (a warm-up is fine), because it averages by itself.
        one_rate: it takes the same learning rate for every group of parameters.
    """

    path: str
    help: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    package: str = ""
    state_bytes: int = 8
    learning_rate: float | None = None
    rate_share: float = 1.0
    constant: bool = False
    one_rate: bool = False

    def usual_rate(self, adamw: float) -> float:
        """The learning rate when none is given, from the one that AdamW would have."""
        return self.learning_rate or adamw * self.rate_share


PRESETS = {
    "adamw": Preset("torch.optim.AdamW", "torch.optim.AdamW, fused", {"fused": True}),
    "adamw8bit": Preset(
        "bitsandbytes.optim.AdamW8bit", "bitsandbytes: moments in 8 bits", package="bitsandbytes", state_bytes=2
    ),
    "adafactor": Preset(
        "transformers.optimization.Adafactor",
        "transformers: second moments of rows and columns only",
        # Scaled by the weights' own size, as by default, LoRA's zeros would move a thousandth of the rate.
        {"scale_parameter": False, "relative_step": False},
        state_bytes=1,
    ),
    "lion": Preset(
        "lion_pytorch.Lion",
        "lion-pytorch: the sign of the momentum; wants a tenth to a third of AdamW's learning rate",
        package="lion-pytorch",
        state_bytes=4,
        rate_share=0.2,
    ),
    "prodigy": Preset(
        "prodigyopt.Prodigy",
        "prodigyopt: finds the learning rate itself; leave it at 1",
        package="prodigyopt",
        state_bytes=16,
        learning_rate=1.0,
        one_rate=True,
    ),
    "schedulefree-adamw": Preset(
        "schedulefree.AdamWScheduleFree",
        "schedulefree: averages in place of a falling learning rate",
        package="schedulefree",
        constant=True,
    ),
    "sgd": Preset("torch.optim.SGD", "torch.optim.SGD", state_bytes=0),
}
"""Optimizers that have a name, in the order in which `--help` lists them."""


def preset(name: str) -> Preset:
    """The preset of a name, or one made up for a class path. Nothing is imported.

    Raises:
        UnknownNameError: it is neither.
    """
    if name in PRESETS:
        return PRESETS[name]
    if "." not in name or not all(part.isidentifier() for part in name.split(".")):
        raise UnknownNameError("optimizer", name, [*PRESETS, "package.module.Class"])
    return Preset(name, package=known_packages().get(name.split(".")[0], ""))


def known_packages() -> dict[str, str]:
    """Packages that presets come from -> what to install with pip; empty where sd_ext already needs it."""
    return {known.path.split(".")[0]: known.package for known in PRESETS.values()}


def strange_package(name: str) -> str:
    """The package that a class path would import, unless a preset comes from it; "" where that is nothing new."""
    package = preset(name).path.split(".")[0]
    return "" if package in known_packages() else package


def parse_options(texts: Iterable[str]) -> dict[str, Any]:
    """Options from texts "name=value": Python literals, true and false; anything else is text.

    Raises:
        InputError: a text is not of that form, or names an option again.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = (part.strip() for part in text.partition("="))
        if not equals or not name.isidentifier() or name in options:
            raise InputError(f"optimizer option {text!r}: write name=value, each name once, such as eps=1e-6")
        try:
            options[name] = ast.literal_eval({"true": "True", "false": "False"}.get(value, value))
        except (ValueError, SyntaxError):
            options[name] = value
    return options
