"""`Told`: what a picture's file says about its making, whichever program wrote it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .record import Record


@dataclass(frozen=True)
class Told:
    """What a file says.

    Args:
        program: who wrote it, such as "AUTOMATIC1111".
        shown: name -> value, as `sd-ext info` prints them.
        settings: those that are settings of a `Recipe`, by its names.
        dropped: what has no counterpart there, or cannot be found here; one phrase each.
        record: our own record; None for pictures of other programs.
    """

    program: str
    shown: Mapping[str, object]
    settings: Mapping[str, object] = field(default_factory=dict)
    dropped: Sequence[str] = ()
    record: Record | None = None
