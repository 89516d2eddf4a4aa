"""Read what a picture's file says about its making."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from ...plain_files import why_not
from .png import read_png_texts
from .record import KEY, Record


def read_record(path: Path) -> Record:
    """Read how a picture of `sd-ext generate` was made.

    Args:
        path: the picture.

    Raises:
        InputError: the file is no picture, or has no record that this version can follow.
    """
    reason = why_not(path)
    if reason:
        there = f"{path} cannot be read as a picture: it {reason}"
        raise InputError(f"no such picture: {path}" if reason == "is not there" else there)
    texts = read_png_texts(path)
    if KEY not in texts:
        raise InputError(f"{path} does not say how it was made; only pictures of sd-ext generate do")
    return Record.parse(texts[KEY], str(path))
