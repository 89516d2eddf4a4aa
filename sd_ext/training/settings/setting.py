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
BETWEEN_0_AND_1 = Range("between 0 and 1", lambda value: 0 < value < 1)


def setting(
    default: Any,
    help: str | Callable[[], str],
    unit: str | None = None,
    choices: Sequence[str] | Callable[[], Sequence[str]] = (),
    free: bool = False,
    within: Range | None = None,
    packages: Mapping[str, str] = MappingProxyType({}),
    in_files: bool = True,
) -> Any:
    """A field of a group.

    Args:
        default: the value when nothing is given, unless a script has another default for its group.
        help: one line; or what returns it, for a line that is made from a table.
        unit: what the help shows after the flag, e.g. "STEPS".
        choices: the texts allowed; empty for any. Or what returns them, where they are the names in a table.
        free: whether a run may be resumed with another value, because it does not change the result.
        within: the numbers allowed; of a tuple, of each of its numbers, of which there must be one.
        packages: choice -> the package that it takes, which not everyone has installed.
        in_files: whether a file of settings may set it; it may be a stranger's.
    """
    metadata = {
        "help": help, "unit": unit, "choices": choices, "free": free, "within": within, "packages": packages,
        "in_files": in_files,
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
