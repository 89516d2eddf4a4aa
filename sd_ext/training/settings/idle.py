"""Settings that change nothing beside others: what a command line or a file asks for in vain is said.

What would contradict another setting is refused where the group of settings is made; these are only without effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Rule:
    """When settings change nothing.

    Args:
        names: the settings.
        beside: the settings that decide it; the rule holds for scripts that have all of them.
        idle: values of all settings -> whether these change nothing.
        why: the reason, as the end of a sentence.
    """

    names: tuple[str, ...]
    beside: tuple[str, ...]
    idle: Callable[[Values], bool]
    why: str


def _no_validation(values: Values) -> bool:
    return not (values["validation_data"] or values["validation_split"] or values["validation_share"])


RULES = (
    Rule(("gamma",), ("loss_weighting",), lambda v: v["loss_weighting"] in ("none", "debiased"),
         "loss_weighting is neither min_snr, soft_min_snr nor p2"),
    Rule(("huber_c", "huber_schedule"), ("loss",), lambda v: v["loss"] in ("l2", "l1"),
         "loss is neither huber nor smooth_l1"),
    Rule(("mask_floor",), ("masked_loss",), lambda v: not v["masked_loss"], "masked_loss is off"),
    Rule(("caption_variants",), ("shuffle_tags", "tag_dropout"), lambda v: not (v["shuffle_tags"] or v["tag_dropout"]),
         "neither shuffle_tags nor tag_dropout is on"),
    Rule(("lr_cycles",), ("lr_schedule",), lambda v: v["lr_schedule"] != "cosine_with_restarts",
         "lr_schedule is not cosine_with_restarts"),
    Rule(("lr_power",), ("lr_schedule",), lambda v: v["lr_schedule"] != "polynomial", "lr_schedule is not polynomial"),
    Rule(("pyramid_discount",), ("pyramid_iterations",), lambda v: not v["pyramid_iterations"],
         "pyramid_iterations is 0"),
    Rule(("class_images",), ("class_data",), lambda v: not v["class_data"], "there is no class_data"),
    Rule(("validation_times",), ("validation_data", "validation_split", "validation_share"), _no_validation,
         "no pictures are held out"),
    Rule(("beta2",), ("optimizer",), lambda v: v["optimizer"] in ("sgd", "adafactor"), "this optimizer has none"),
    Rule(("steps",), ("epochs",), lambda v: v["epochs"] > 0, "epochs say how long the run is"),
)  # fmt: skip


def idle(values: Values, given: Iterable[str], defaults: Values) -> Iterator[str]:
    """A sentence for each setting that was given, is not its default, and changes nothing.

    Args:
        values: of all settings of a script.
        given: the names of those that were given.
        defaults: of all settings of the script.
    """
    asked = {name for name in given if name in values and values[name] != defaults[name]}
    for rule in RULES:
        if all(name in values for name in rule.beside) and rule.idle(values):
            for name in sorted(asked.intersection(rule.names)):
                yield f"{name} changes nothing: {rule.why}"
