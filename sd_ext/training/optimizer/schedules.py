"""Learning rates over the steps of a run, and their settings: functions of the optimizer step, and of nothing else.

No count of processes, passes or batches enters, so a run's rates are the same however its steps are cut up. Imports no
torch.
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
"""(share of the steps after the warm-up that is done, cycles, power) -> from 1 down to 0."""

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

    It rises linearly over `warmup` steps, from learning_rate / warmup at the first to learning_rate at the last of
    them, and falls from learning_rate at step `warmup` to lr_end x learning_rate at step `steps`, where it stays.
    After the warm-up this is what diffusers.optimization and transformers.optimization have; their warm-up starts
    with a step of rate 0, which trains nothing. inverse_sqrt falls as sqrt(w / step) with w = `warmup` (10000
    without), knows no end, and stays above lr_end x learning_rate. constant has no use for lr_end.

    Args:
        settings: the highest rate, and how it is reached and left.
        step: from 0.
        steps: of the whole run.
    """
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    return settings.learning_rate * _share(settings, step - settings.warmup, steps - settings.warmup)


def _share(settings: RateSettings, step: int, steps: int) -> float:
    """The share of the highest rate, from 1, at a step after the warm-up, of `steps` after it."""
    if settings.lr_schedule == "inverse_sqrt":
        scale = settings.warmup or 10_000
        return max(settings.lr_end, math.sqrt(scale / (step + scale)))
    done = min(1.0, step / max(1, steps))
    if done == 1 and settings.lr_schedule != "constant":  # where another restart would begin
        return settings.lr_end
    shape = SHAPES[settings.lr_schedule](done, settings.lr_cycles, settings.lr_power)
    return 1 - (1 - settings.lr_end) * (1 - shape)
