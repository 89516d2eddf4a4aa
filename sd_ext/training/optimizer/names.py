"""Optimizers by name or class path.

    adamw               torch.optim.AdamW, fused
    adamw8bit           bitsandbytes: moments in 8 bits
    adafactor           transformers: second moments of rows and columns only
    prodigy             prodigyopt: finds the learning rate itself; leave it at 1
    lion                lion-pytorch: the sign of the momentum; wants a tenth to a third of AdamW's rate
    schedulefree-adamw  schedulefree: averages in place of a falling learning rate
    sgd                 torch.optim.SGD
    package.Class       any other torch.optim.Optimizer

Imports torch where it is needed only, so that settings can be checked against `PRESETS` at once.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sd_ext.errors import InputError, UnknownNameError

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Preset:
    """What is known of an optimizer that has a name.

    Args:
        path: its class.
        options: of its constructor, unless others are given.
        package: to install with pip; empty where sd_ext already needs it.
        learning_rate: the one its authors mean to be left alone; None where it has to be chosen.
        constant: it wants a constant learning rate (a warm-up is fine), because it averages by itself.
        one_rate: it takes the same learning rate for every group.
    """

    path: str
    options: dict[str, Any] = field(default_factory=dict)
    package: str = ""
    learning_rate: float | None = None
    constant: bool = False
    one_rate: bool = False


PRESETS = {
    "adamw": Preset("torch.optim.AdamW", {"fused": True}),
    "adamw8bit": Preset("bitsandbytes.optim.AdamW8bit", package="bitsandbytes"),
    # torch.optim.Adafactor scales each step by the weights' own size: LoRA's zeros would move a thousandth of the rate.
    "adafactor": Preset("transformers.optimization.Adafactor", {"scale_parameter": False, "relative_step": False}),
    "prodigy": Preset("prodigyopt.Prodigy", package="prodigyopt", learning_rate=1.0, one_rate=True),
    "lion": Preset("lion_pytorch.Lion", package="lion-pytorch"),
    "schedulefree-adamw": Preset("schedulefree.AdamWScheduleFree", package="schedulefree", constant=True),
    "sgd": Preset("torch.optim.SGD"),
}


def preset(name: str) -> Preset:
    """The preset of a name, or one made up for a class path.

    Raises:
        UnknownNameError: it is neither.
    """
    if name in PRESETS:
        return PRESETS[name]
    if "." not in name or not all(part.isidentifier() for part in name.split(".")):
        raise UnknownNameError("optimizer", name, [*PRESETS, "package.module.Class"])
    return Preset(name, package=name.split(".")[0])


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
