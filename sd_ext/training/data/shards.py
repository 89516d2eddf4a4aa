"""Webdataset shards: tar archives in which the files of a sample lie side by side and share their name up to a dot.

An archive is indexed once, by its members' headers; a picture is then read by seeking to its place. Nothing is ever
extracted, so the members' names are only names.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

from sd_ext.errors import InputError
from sd_ext.training.data.items import CAPTION_NAMES, SUFFIXES, FileReader, Item, one_line

MASK = ".mask.png"


def read_shards(paths: list[Path], text: str | None = None) -> list[Item]:
    """The pictures of uncompressed tar archives, in their order.

    Args:
        paths: the archives.
        text: the field of `.json` members that holds captions; None for `text`, `caption` or `prompt`.

    Raises:
        InputError: an archive that cannot be read to its end, or no pictures in any.
    """
    items = [item for path in paths for item in shard_items(path, text)]
    if not items:
        raise InputError(f"no pictures ({', '.join(SUFFIXES)}) in {', '.join(p.name for p in paths)}")
    return items


def members(path: Path) -> dict[str, dict[str, FileReader]]:
    """For each sample's name, readers of its files by their endings."""
    samples: dict[str, dict[str, FileReader]] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for info in archive:
                folder, _, base = info.name.rpartition("/")
                stem, dot, ending = base.partition(".")
                if info.isreg() and not info.issparse() and stem and dot:
                    key = f"{folder}/{stem}" if folder else stem
                    reader = FileReader(path, info.offset_data, info.size)
                    samples.setdefault(key, {})[f".{ending.lower()}"] = reader
    except (OSError, tarfile.TarError, EOFError) as error:
        raise InputError(
            f"{path} is not a whole, uncompressed tar archive ({error}); remove it or get it anew"
        ) from error
    return samples


def shard_items(path: Path, text: str | None) -> list[Item]:
    items = []
    for key, files in members(path).items():
        picture = next((ending for ending in files if ending in SUFFIXES), None)
        if picture:
            name = f"{path.name}/{key}{picture}"
            items.append(Item(name, files[picture], caption(files, text, name), files.get(MASK)))
    return items


def caption(files: dict[str, FileReader], text: str | None, name: str) -> str:
    """From the sample's `.txt` or `.caption`, or a field of its `.json`."""
    try:
        for ending in () if text else (".txt", ".caption"):
            if ending in files:
                return one_line(files[ending]().decode("utf-8-sig"))
        if ".json" not in files:
            return ""
        said: Any = json.loads(files[".json"]())
    except ValueError as error:
        raise InputError(f"the caption of {name} cannot be read: {error}") from error
    names = [text] if text else CAPTION_NAMES
    return next((one_line(said[n]) for n in names if isinstance(said, dict) and n in said), "")
