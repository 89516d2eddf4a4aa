"""Messages about U-Nets and attention, each logged once in a process."""

from __future__ import annotations

import logging

log = logging.getLogger("sd_ext.unets")
_said: set[str] = set()


def say(level: int, message: str) -> None:
    """Log a message, unless it has been logged before.

    Args:
        level: such as `logging.WARNING`.
        message: the message.
    """
    if message not in _said:
        _said.add(message)
        log.log(level, message)


def forget() -> None:
    """Allow every message to be logged again."""
    _said.clear()
