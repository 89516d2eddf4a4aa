"""Optimizers by name or class path. To add a named optimizer, add one entry to `PRESETS`; nothing else is needed.

Imports no torch, so that settings can be checked without waiting for it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from sd_ext.errors import InputError, UnknownNameError


@dataclass(frozen=True)
class Preset:
    """A named optimizer and its properties.

    Args:
        path: import path of its class.
        help: one line for `--help`.
        options: default keyword arguments of its constructor.
        package: the pip package that has it; empty if sd_ext depends on it anyway.
        state_bytes: bytes of optimizer state for each trained number.
        learning_rate: its usual learning rate, if that does not depend on the task; None to derive it from AdamW's.
        rate_share: its usual learning rate divided by AdamW's.
        constant: whether it needs a constant learning rate (a warm-up is fine), because it averages the weights.
        one_rate: whether all groups of parameters must have the same learning rate.
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

    @property
    def own_rate(self) -> bool:
        """Whether its learning rate is another one than AdamW's."""
        return self.learning_rate is not None or self.rate_share != 1

    def usual_rate(self, adamw: float) -> float:
        """The learning rate to use if none is given; `adamw` is the one that AdamW would have."""
        return self.learning_rate or adamw * self.rate_share


PRESETS = {
    "adamw": Preset("torch.optim.AdamW", "torch.optim.AdamW, fused", {"fused": True}),
    "adamw8bit": Preset(
        "bitsandbytes.optim.AdamW8bit", "bitsandbytes: moments in 8 bits", package="bitsandbytes", state_bytes=2
    ),
    "adafactor": Preset(
        "transformers.optimization.Adafactor",
        "transformers: second moments of rows and columns only",
        # By default its steps are scaled by the size of the weights; LoRA's B, which starts at 0, would hardly move.
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
        # Its authors also advise safeguard_warmup. Together they multiply its estimate by the bias correction, a fifth
        # to a third in the first hundred steps, so that it stays near its first guess. After a warm-up it trains as
        # well without (tests/training/optimizer/test_trains.py).
        {"use_bias_correction": True},
        package="prodigyopt",
        state_bytes=16,
        learning_rate=1.0,
        one_rate=True,
    ),
    "dadapt-adam": Preset(
        "dadaptation.DAdaptAdam",
        "dadaptation: AdamW that finds the learning rate itself; leave it at 1",
        # Without the correction its first steps are several times too long, and a LoRA diverges.
        {"decouple": True, "use_bias_correction": True},
        package="dadaptation",
        state_bytes=12,
        learning_rate=1.0,
        one_rate=True,
    ),
    "schedulefree-adamw": Preset(
        "schedulefree.AdamWScheduleFree",
        "schedulefree: averages in place of a falling learning rate",
        package="schedulefree",
        constant=True,
    ),
    "sgd": Preset(
        "torch.optim.SGD",
        "torch.optim.SGD; does not scale gradients, so it wants about 100 times AdamW's learning rate",
        {"momentum": 0.9},
        state_bytes=4,
        rate_share=100.0,
    ),
}
"""The named optimizers, in the order in which `--help` lists them."""


def preset(name: str) -> Preset:
    """The preset of a named optimizer, or the properties of a class path. Nothing is imported.

    The path of a preset's class stands for the preset. Other classes of a package that is about one idea (Prodigy,
    D-Adaptation, Schedule-Free, Lion) have the properties of its preset, without the options; all others the default.

    Raises:
        UnknownNameError: `name` is neither.
    """
    if name in PRESETS:
        return PRESETS[name]
    if "." not in name or not all(part.isidentifier() for part in name.split(".")):
        raise UnknownNameError("optimizer", name, [*PRESETS, "package.module.Class"])
    package = name.split(".")[0]
    kin = [known for known in PRESETS.values() if known.path.split(".")[0] == package]
    if same := [known for known in kin if known.path == name]:
        return same[0]
    if len(kin) == 1 and kin[0].package:
        return replace(kin[0], path=name, options={})
    return Preset(name, package=known_packages().get(package, ""))


def known_packages() -> dict[str, str]:
    """The import packages of all presets -> the pip package to install; "" if sd_ext depends on it anyway."""
    return {known.path.split(".")[0]: known.package for known in PRESETS.values()}


def strange_package(name: str) -> str:
    """The package that an optimizer's class path would import, if no preset uses it; "" for known packages."""
    package = preset(name).path.split(".")[0]
    return "" if package in known_packages() else package


def parse_options(texts: Iterable[str]) -> dict[str, Any]:
    """Parse optimizer options.

    Args:
        texts: each "name=value". The value is a Python literal, `true` or `false`; anything else is taken as text.

    Returns:
        Name -> value.

    Raises:
        InputError: a text is not of that form, or an option is given twice.
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
