"""Early stopping by the validation loss, as a function of the log: a run that is resumed decides as one left alone.

The run ends when the loss on the held-out pictures has not become less for `patience` validations (Prechelt 1998,
"Early stopping - but when?", class UP), and its result is that of the validation with the least loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sd_ext.training.settings.setting import BELOW_1, NOT_NEGATIVE, Settings, contradiction, setting

LOSS = "validation_loss"


@dataclass(frozen=True)
class StopSettings(Settings):
    """An end before the last step."""

    patience: int = setting(
        0, "validations without improvement after which a run ends, its best the result; 0: the last step's", "N",
        within=NOT_NEGATIVE,
    )  # fmt: skip
    min_improvement: float = setting(
        0.0, "how much less a validation loss must be to count, as a share of the least", within=BELOW_1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_improvement and not self.patience:
            raise contradiction("min_improvement acts only with patience")


@dataclass(frozen=True)
class Verdict:
    """What the validations of a run say so far.

    Args:
        best: the step with the least loss; 0 before the first validation.
        loss: its loss.
        without: how many validations came after it.
    """

    best: int = 0
    loss: float = math.inf
    without: int = 0


def judge(
    entries: Iterable[Mapping[str, float]], settings: StopSettings, every: int, steps: int, first: int
) -> Verdict:
    """What the log says of a run.

    Args:
        entries: of the log, in order; of them those with `LOSS` count, if they stand where such a run validates.
        settings: how much less counts. A loss that is not a number never does.
        every: steps between two validations.
        steps: the last step, which has one too.
        first: the step of the parent that the run starts from, whose validations do not count; else 0.
    """
    found = Verdict()
    for entry in entries:
        step = int(entry["step"])
        if LOSS not in entry or step <= first or (step % every and step != steps):
            continue
        if entry[LOSS] < found.loss * (1 - settings.min_improvement):
            found = Verdict(step, entry[LOSS])
        else:
            found = Verdict(found.best, found.loss, found.without + 1)
    return found
