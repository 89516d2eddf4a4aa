"""`Option`: what is declared of an option of a feature, once. Signatures, checks, tables and help follow from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import InputError


@dataclass(frozen=True)
class Option:
    """An option of a feature.

    Args:
        neutral: its value when it is off.
        kind: its declared type, see `sd_ext.declared`.
        help: what it is, in a line.
        fits: whether a value of that type is within its range.
        allowed: that range in words: "must be ...".
    """

    neutral: Any
    kind: Any
    help: str
    fits: Callable[[Any], bool] | None = None
    allowed: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raise `InputError` if a value of the declared type is out of range."""
        if self.fits is not None and not self.fits(value):
            raise InputError(f"{name} must be {self.allowed}, got {value!r}")


def interval(kind_of: str) -> Option:
    """The option of a guidance that says in which part of the run it acts."""
    return Option(
        [0.0, 1.0],
        tuple[float, float],
        f"the part of the steps with {kind_of}, [start, stop)",
        lambda value: 0 <= value[0] < value[1] <= 1,
        "[start, stop] with 0 <= start < stop <= 1",
    )
