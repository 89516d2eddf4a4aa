"""Learning-rate schedules, and their settings.

A rate depends on the number of the optimizer step only, not on the number of processes or passes. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from sd_ext.training.settings.setting import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, SHARE, Settings, setting

SHAPES: dict[str, Callable[[float, float, float], float]] = {
    "constant": lambda done, cycles, power: 1.0,
    "linear": lambda done, cycles, power: 1 - done,
    "cosine": lambda done, cycles, power: 0.5 * (1 + math.cos(math.pi * done)),
    "cosine_with_restarts": lambda done, cycles, power: 0.5 * (1 + math.cos(math.pi * (cycles * done % 1))),
    "polynomial": lambda done, cycles, power: (1 - done) ** power,
}
"""Name -> function (share of the steps after the warm-up that are done, cycles, power) -> factor between 1 and 0."""

SCHEDULES = (*SHAPES, "inverse_sqrt")


@dataclass(frozen=True)
class RateSettings(Settings):
    """The learning rate over the steps of a run."""

    learning_rate: float = setting(1e-3, "the highest learning rate", "LR", within=POSITIVE)
    lr_schedule: str = setting("cosine", "how it falls after the warm-up", choices=SCHEDULES)
    lr_end: float = setting(0.0, "what is left of it at the last step, as a share of the highest", within=SHARE)
    lr_cycles: int = setting(1, "falls of cosine_with_restarts", "N", within=AT_LEAST_1)
    lr_power: float = setting(1.0, "power of polynomial", within=POSITIVE)
    warmup: int = setting(200, "steps over which the learning rate rises from 0", "STEPS", within=NOT_NEGATIVE)


def learning_rate(settings: RateSettings, step: int, steps: int) -> float:
    """The learning rate of one optimizer step.

    The rate rises linearly over `warmup` steps, from learning_rate / warmup at the first to learning_rate at the last
    of them. Then it falls from learning_rate at step `warmup` to lr_end x learning_rate at step `steps`, where it
    stays. Two schedules differ: "inverse_sqrt" falls as sqrt(w / step), with w = `warmup` (10000 if that is 0),
    whatever `steps` is, but not below lr_end x learning_rate; "constant" does not fall, and ignores lr_end.

    After the warm-up the rates are those of diffusers.optimization and transformers.optimization. Their warm-up starts
    with a step of rate 0, which trains nothing.

    Args:
        settings: the highest rate, the warm-up and the schedule.
        step: the optimizer step, from 0.
        steps: number of steps of the whole run.

    Returns:
        The learning rate of the step.
    """
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    return settings.learning_rate * _share(settings, step - settings.warmup, steps - settings.warmup)


def _share(settings: RateSettings, step: int, steps: int) -> float:
    """The rate as a share of the highest one, 1 to lr_end; `step` and `steps` are counted from the warm-up's end."""
    if settings.lr_schedule == "inverse_sqrt":
        scale = settings.warmup or 10_000
        return max(settings.lr_end, math.sqrt(scale / (step + scale)))
    done = min(1.0, step / max(1, steps))
    if done == 1 and settings.lr_schedule != "constant":  # else cosine_with_restarts would restart here
        return settings.lr_end
    shape = SHAPES[settings.lr_schedule](done, settings.lr_cycles, settings.lr_power)
    return 1 - (1 - settings.lr_end) * (1 - shape)
