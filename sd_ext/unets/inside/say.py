"""Messages of this room: each is logged once in a process."""

from __future__ import annotations

import logging

log = logging.getLogger("sd_ext.unets")
_said: set[str] = set()


def say(level: int, message: str) -> None:
    """Log a message that has not been logged before.

    Args:
        level: as `logging.WARNING`.
    """
    if message not in _said:
        _said.add(message)
        log.log(level, message)


def forget() -> None:
    """Let every message be logged again."""
    _said.clear()
