"""Keep other libraries' warnings off the standard error, where what this package says would drown in them.

Errors are still exceptions, and what our own modules log or warn of is still written.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

OURS = "sd_ext"


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.partition(".")[0] == OURS


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Within the block, warnings of other libraries are dropped: those of the module `warnings`, and logged ones."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    with warnings.catch_warnings():
        if not sys.warnoptions:  # python -W ... shows what it asks for
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", module=rf"{OURS}\b")
        last = logging.lastResort  # writes what no handler takes
        if last is not None:
            last.addFilter(_is_ours)
        try:
            yield
        finally:
            if last is not None:
                last.removeFilter(_is_ours)


def silence_torch() -> None:
    """Import torch and let its own log handler write errors only. Before Diffusers, whose import makes torch warn."""
    import torch  # noqa: F401

    for handler in logging.getLogger("torch").handlers:
        if type(handler) is logging.StreamHandler:  # others are somebody else's
            handler.setLevel(max(handler.level, logging.ERROR))
