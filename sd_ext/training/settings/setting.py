"""Declares settings and groups of settings.

A group is a frozen dataclass that is defined beside the code that reads it (`data/settings.py`,
`optimizer/settings.py`, ...). Each of its fields is one setting: one flag, one key of a TOML file, one line of help.
This module imports neither torch nor any of the groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

from typing_extensions import Self

from sd_ext.errors import InputError


@dataclass(frozen=True)
class Range:
    """The numbers that a setting allows.

    Args:
        words: description for error messages, after "it must be".
        holds: returns whether a number is allowed.
    """

    words: str
    holds: Callable[[float], bool]


AT_LEAST_1 = Range("at least 1", lambda value: value >= 1)
NOT_NEGATIVE = Range("0 or more", lambda value: value >= 0)
POSITIVE = Range("more than 0", lambda value: value > 0)
SHARE = Range("from 0 to 1", lambda value: 0 <= value <= 1)
BELOW_1 = Range("from 0 up to, not including, 1", lambda value: 0 <= value < 1)
RAISED = "raised, where the learning rate does not depend on it (`lr_schedule` constant or inverse_sqrt)"
SAME_PRODUCT = "if `batch_size` x `accumulation` stays the same; the result too then, but for rounding and dropout"
BETWEEN_0_AND_1 = Range("between 0 and 1", lambda value: 0 < value < 1)


def setting(
    default: Any,
    help: str | Callable[[], str],
    unit: str | None = None,
    choices: Sequence[str] | Callable[[], Sequence[str]] = (),
    free: bool = False,
    in_place: str = "",
    within: Range | None = None,
    packages: Mapping[str, str] = MappingProxyType({}),
    in_files: bool = True,
    tables: str = "",
    read: Callable[[Any, str], Any] | None = None,
    of_weights: bool = False,
) -> Any:
    """Declare a setting: a field of a `Settings` dataclass.

    Args:
        default: the default value; a script's `Config` may have another one.
        help: one line of help; or a function that returns it, if it is made from a table.
        unit: placeholder that the help shows after the flag, e.g. "STEPS".
        choices: the allowed texts; empty if any is allowed. Or a function that returns them, if they are from a table.
        free: True if the setting does not affect the result of a run, so that it may change when a run is resumed.
        in_place: if it is not free, how it may change all the same when a run is resumed; "" if it may not.
        within: the allowed numbers. A tuple must have at least one number, and all must be allowed.
        packages: choice -> the optional package that it needs.
        in_files: False if only the command line may set it, not a settings file, which may be from an untrusted source.
        tables: the name of the tables `[[name]]` that a file may write the setting as.
        of_weights: True if it decides which tensors are trained, their shapes, or what they stand for: what goes on
            from a checkpoint has the checkpoint's.
        read: makes the value from a flag's text or a TOML value, and the place it stands at; None to convert it to the
            setting's type.
    """
    metadata = {
        "help": help, "unit": unit, "choices": choices, "free": free, "within": within, "packages": packages,
        "in_files": in_files, "in_place": in_place, "tables": tables, "read": read, "of_weights": of_weights,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


def now(given: Any) -> Any:
    """An argument of `setting`; if it is a function, its result."""
    return given() if callable(given) else given


@dataclass(frozen=True)
class Settings:
    """Base class of every group of settings; checks the values when a group is made.

    Raises:
        InputError: a value is not among the setting's choices, not a finite number, or outside its range.
    """

    def __post_init__(self) -> None:
        for spec in fields(self):
            value, within = getattr(self, spec.name), spec.metadata["within"]
            choices = now(spec.metadata["choices"])
            if choices and value not in choices:
                raise InputError(f"{spec.name} is {value!r}; it can be {', '.join(choices)}")
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{spec.name} is {value}; it must be a finite number")
            numbers = value if isinstance(value, tuple) else (value,)
            if within and not (numbers and all(map(within.holds, numbers))):
                raise InputError(f"{spec.name} is {value}; it must be {within.words}")

    def change(self, **values: Any) -> Self:
        """A copy of the group with other values."""
        return replace(self, **values)


def contradiction(message: str) -> InputError:
    """The error to raise if settings contradict each other; `message` says which and what to set."""
    return InputError(f"settings contradict each other: {message}")
