"""Writes picture sets as imagefolders: PNG files and `metadata.jsonl`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from sd_ext import whole
from sd_ext.errors import InputError


def write_set(folder: str | os.PathLike[str], draw: Callable[[], Iterable[tuple[Image.Image, dict[str, Any]]]]) -> int:
    """Write pictures with their metadata. `metadata.jsonl` is written last, so a folder that has one is complete.

    Args:
        folder: the folder to write.
        draw: returns the pictures, each with its metadata entry, which must have "file_name". It is called only after
            the folder was checked.

    Returns:
        The number of pictures.

    Raises:
        InputError: the folder holds a picture set already.
        WriteError: the disk is full or fails.
    """
    metadata = Path(folder) / "metadata.jsonl"
    if metadata.exists():
        raise InputError(f"{folder} already holds a picture set; remove it or choose another folder")
    lines = []
    for picture, entry in draw():
        with whole.file(metadata.with_name(entry["file_name"])) as new:
            picture.save(new)
        lines.append(json.dumps(entry) + "\n")
    whole.write_text(metadata, "".join(lines))
    return len(lines)
