"""Learning-rate schedules: functions of the optimizer step, and of nothing else.

No count of processes, passes or batches enters, so a run's rates are the same however its steps are cut up. Imports no
torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from sd_ext.errors import InputError, UnknownNameError

SHAPES: dict[str, Callable[[float, float, float], float]] = {
    "constant": lambda done, cycles, power: 1.0,
    "linear": lambda done, cycles, power: 1 - done,
    "cosine": lambda done, cycles, power: 0.5 * (1 + math.cos(math.pi * done)),
    "cosine_with_restarts": lambda done, cycles, power: 0.5 * (1 + math.cos(math.pi * (cycles * done % 1))),
    "polynomial": lambda done, cycles, power: (1 - done) ** power,
}
"""(share of the steps after the warm-up that is done, cycles, power) -> from 1 down to 0."""

SCHEDULES = (*SHAPES, "inverse_sqrt")


class ScheduleSettings(Protocol):
    """What a schedule needs of a run's settings.

    Attributes:
        learning_rate: the highest rate.
        lr_schedule: of `SCHEDULES`.
        lr_end: the share of it that is left at the end, 0 to 1; constant has no use for it.
        lr_cycles: of cosine_with_restarts.
        lr_power: of polynomial.
        warmup: steps.
        steps: of the whole run.
    """

    @property
    def learning_rate(self) -> float: ...
    @property
    def lr_schedule(self) -> str: ...
    @property
    def lr_end(self) -> float: ...
    @property
    def lr_cycles(self) -> int: ...
    @property
    def lr_power(self) -> float: ...
    @property
    def warmup(self) -> int: ...
    @property
    def steps(self) -> int: ...


def learning_rate(config: ScheduleSettings, step: int) -> float:
    """The learning rate of optimizer step `step`, the first of which is 0.

    It rises linearly over `warmup` steps, from learning_rate / warmup at the first to learning_rate at the last of
    them, and falls from learning_rate at step `warmup` to lr_end x learning_rate at step `steps`, where it stays.
    After the warm-up this is what diffusers.optimization and transformers.optimization have; their warm-up starts
    with a step of rate 0, which trains nothing. inverse_sqrt falls as sqrt(w / step) with w = `warmup` (10000
    without), knows no end, and stays above lr_end x learning_rate.

    Raises:
        UnknownNameError: the schedule is not known.
        InputError: a number is out of its range.
    """
    if config.lr_schedule not in SCHEDULES:
        raise UnknownNameError("learning-rate schedule", config.lr_schedule, SCHEDULES)
    if not 0 <= config.lr_end <= 1 or config.lr_cycles < 1 or not config.lr_power > 0:
        raise InputError(
            f"lr_end is {config.lr_end}, lr_cycles {config.lr_cycles} and lr_power {config.lr_power}; "
            "they must be from 0 to 1, at least 1, and more than 0"
        )
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    return config.learning_rate * _share(config, step - config.warmup)


def _share(config: ScheduleSettings, step: int) -> float:
    """The share of the highest rate, from 1, `step` steps after the warm-up."""
    if config.lr_schedule == "inverse_sqrt":
        scale = config.warmup or 10_000
        return max(config.lr_end, math.sqrt(scale / (step + scale)))
    done = min(1.0, step / max(1, config.steps - config.warmup))
    if done == 1 and config.lr_schedule != "constant":  # where another restart would begin
        return config.lr_end
    shape = SHAPES[config.lr_schedule](done, config.lr_cycles, config.lr_power)
    return 1 - (1 - config.lr_end) * (1 - shape)
