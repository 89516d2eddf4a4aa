"""Every setting of the training scripts: one dataclass field = one flag = one line of help.

This package imports no torch, so that `--help` is instant. Durations are in optimizer steps, sides of pictures in
pixels, `channels` count the feature maps of each level from the finest to the coarsest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from sd_ext.errors import InputError
from sd_ext.training.optimizer.names import parse_options, preset
from sd_ext.training.optimizer.schedules import SCHEDULES


def setting(default: Any, help: str, unit: str | None = None, choices: tuple[str, ...] = (), free: bool = False) -> Any:
    """A dataclass field with its line of help.

    Args:
        default: the value when nothing is given.
        help: one line.
        unit: what the help shows after the flag, e.g. "STEPS".
        choices: the values allowed; empty for any.
        free: whether a run may be resumed with another value (it does not change the result).
    """
    return field(default=default, metadata={"help": help, "unit": unit, "choices": choices, "free": free})


@dataclass(frozen=True)
class RunConfig:
    """What every training run has."""

    section: ClassVar[str] = ""  # the table of a recipe file that holds these settings
    presets: ClassVar[dict[str, str]] = {}  # names of recipe files that can stand in place of a file of settings
    plan: ClassVar[str] = ""  # "module:function" from settings to the lines that say what a run would do

    data: str = setting(
        "",
        "captioned pictures: imagefolder, pictures with .txt, .tar shards, or a Hub dataset",
        "DATA",
        free=True,
    )
    out: str = setting("", "folder of the run: checkpoints, previews, logs, and at the end the model", "DIR", free=True)
    model: str = setting("", "start from this model folder (or pipeline folder), not from nothing", "DIR", free=True)
    split: str = setting("train", "train on the pictures with this split in metadata.jsonl; 'all' for every picture")
    resolution: int = setting(64, "pictures are resized and cropped to this", "PIXELS")
    flip: bool = setting(False, "mirror half of the pictures, drawn anew each time")
    steps: int = setting(1000, "optimizer steps in all", "STEPS")
    batch_size: int = setting(32, "pictures per process in one forward pass", "N")
    accumulation: int = setting(1, "forward passes whose gradients make one optimizer step", "N")
    learning_rate: float = setting(1e-3, "the highest learning rate", "LR")
    lr_schedule: str = setting("cosine", "how it falls after the warm-up", choices=SCHEDULES)
    lr_end: float = setting(0.0, "what is left of it at the last step, as a share of the highest")
    lr_cycles: int = setting(1, "falls of cosine_with_restarts", "N")
    lr_power: float = setting(1.0, "power of polynomial")
    warmup: int = setting(200, "steps over which the learning rate rises from 0", "STEPS")
    optimizer: str = setting(
        "adamw", "adamw, adamw8bit, adafactor, lion, prodigy, schedulefree-adamw, sgd, or a class package.module.Class"
    )
    optimizer_options: tuple[str, ...] = setting((), "arguments of the optimizer: name=value", "NAME=VALUE,...")
    weight_decay: float = setting(0.01, "decay of matrices and kernels (not of biases and norms)")
    beta2: float = setting(0.99, "second decay rate of adamw")
    clip: float = setting(1.0, "the gradient's norm is cut to this; 0 for never", "NORM")
    ema: float = setting(0.999, "decay of the averaged weights, which are what is saved; 0 for no averaging")
    mixed_precision: str = setting("no", "what forward passes compute in", choices=("no", "bf16", "fp16"))
    gradient_checkpointing: bool = setting(False, "trade a second forward pass for memory")
    seed: int = setting(0, "every draw at step s depends on (seed, s) only")
    device: str = setting("auto", "where to train", choices=("auto", "cpu", "cuda"), free=True)
    workers: int = setting(0, "threads that read pictures ahead", "N", free=True)
    log_every: int = setting(20, "steps between two lines of the log", "STEPS", free=True)
    validate_every: int = setting(1000, "steps between two preview pictures; 0 for none", "STEPS", free=True)
    checkpoint_every: int = setting(500, "steps between two checkpoints", "STEPS", free=True)
    keep: int = setting(2, "checkpoints kept", "N", free=True)
    tracker: str = setting("tensorboard", "where metrics go", choices=("tensorboard", "wandb", "none"), free=True)

    def __post_init__(self) -> None:
        for spec in fields(self):
            value, choices = getattr(self, spec.name), spec.metadata.get("choices")
            if choices and value not in choices:
                raise InputError(f"{spec.name} is {value!r}; it can be {', '.join(choices)}")
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{spec.name} is {value}; it must be a finite number")
        for name in ("steps", "batch_size", "accumulation", "checkpoint_every", "keep", "log_every", "lr_cycles"):
            self._need(name, getattr(self, name) >= 1, "at least 1")
        sides = (self.resolution,) if isinstance(self.resolution, int) else self.resolution
        self._need("resolution", bool(sides) and min(sides) >= 1, "at least 1")
        for name in ("warmup", "weight_decay", "clip", "validate_every", "workers", "seed"):
            self._need(name, getattr(self, name) >= 0, "0 or more")
        self._need("learning_rate", self.learning_rate > 0, "more than 0")
        self._need("lr_end", 0 <= self.lr_end <= 1, "from 0 to 1")
        self._need("lr_power", self.lr_power > 0, "more than 0")
        parse_options(self.optimizer_options)
        averages = preset(self.optimizer).constant
        if averages and self.ema:
            raise InputError(f"settings contradict each other: {self.optimizer} averages by itself; set ema = 0")
        if averages and self.lr_schedule != "constant":
            raise InputError(
                f"settings contradict each other: {self.optimizer} averages in place of a falling learning rate; "
                "set lr_schedule = constant"
            )
        self._need("ema", 0 <= self.ema < 1, "from 0 up to, not including, 1")
        self._need("beta2", 0 < self.beta2 < 1, "between 0 and 1")

    def _need(self, name: str, fulfilled: bool, allowed: str) -> None:
        if not fulfilled:
            raise InputError(f"{name} is {getattr(self, name)}; it must be {allowed}")


def result_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that change a run's result: those a resumed run must share with the one it continues."""
    values = {spec.name: getattr(config, spec.name) for spec in fields(config) if not spec.metadata["free"]}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
