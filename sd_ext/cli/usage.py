"""Command lines that cannot be read, in one sentence."""

from __future__ import annotations

import re
from typing import Any

import typer

UNREADABLE: type[Exception] = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "UsageError")
"""What typer raises for an unknown option, a missing value, a word too many, ..."""

KINDS = {"integer": "a whole number", "number": "a number", "boolean": "true or false"}


def in_one_sentence(error: Any) -> str:
    """What is wrong with a command line, and where help is.

    Args:
        error: an exception of the kind `UNREADABLE`.
    """
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "sd-ext"
    message = re.sub(r"\s+", " ", error.format_message()).strip().rstrip(".")
    for kind, words in KINDS.items():
        message = re.sub(rf": Input should be a valid {kind}\b.*", f": it must be {words}", message)
    message = re.sub(r"\((?:Possible options|Did you mean one of):? ([^)]*)\)", r"(did you mean \1?)", message)
    message = message[:1].lower() + message[1:]
    return f"{message}; see {command} --help"


def is_help(error: Any) -> bool:
    """Whether it says that a command of several was given alone, which shows its help instead."""
    return type(error).__name__ == "NoArgsIsHelpError"
