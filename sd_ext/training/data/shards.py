"""Reads WebDataset shards: tar archives in which all files of a sample share a name up to the first dot.

An archive's headers are read once; a picture is later read by seeking to its place in the archive. Nothing is
extracted to disk, so names in the archive cannot cause files to be written anywhere.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

from sd_ext.errors import InputError
from sd_ext.plain_files import TEXT_BYTES, decode, why_not
from sd_ext.reading import parse_json
from sd_ext.training.data.items import CAPTION_NAMES, SUFFIXES, FileReader, Item, Refused, one_line, wordings_of

MASK = ".mask.png"


def read_shards(paths: list[Path], text: str | None = None, within: Path | None = None) -> list[Item]:
    """The pictures of uncompressed tar archives, in the order of the archives and of their members.

    An archive that is no plain file, or a link that leads out of `within`, is left out; a stand-in item reports it.

    Args:
        paths: the archives.
        text: the field with the caption in `.json` members; None to use the first of `text`, `caption`, `prompt`.
        within: archives must lie inside this folder, also after symbolic links are resolved; None for no check.

    Raises:
        InputError: an archive cannot be read to its end, or none has pictures.
    """
    reasons = {path: why_not(path, within) for path in paths}
    items = [item for path in paths if not reasons[path] for item in shard_items(path, text)]
    refused = [Item(path.name, Refused(reason)) for path, reason in reasons.items() if reason]
    if not items and refused:
        raise InputError(f"{paths[0]} {refused[0].read.reason}")
    if not items:
        raise InputError(f"no pictures ({', '.join(SUFFIXES)}) in {', '.join(p.name for p in paths)}")
    return [*items, *refused]


def members(path: Path) -> dict[str, dict[str, FileReader]]:
    """Index an archive.

    Returns:
        Name of each sample -> ending of each of its files, such as ".png" -> reader of that file.

    Raises:
        InputError: not a complete, uncompressed tar archive.
    """
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
    """The items of one archive; arguments as for `read_shards`."""
    items = []
    for key, files in members(path).items():
        picture = next((ending for ending in files if ending in SUFFIXES), None)
        if picture:
            name = f"{path.name}/{key}{picture}"
            items.append(shard_item(name, files, picture, text))
    return items


def shard_item(name: str, files: dict[str, FileReader], picture: str, text: str | None) -> Item:
    """The item of a sample; if its caption cannot be read, a stand-in that says why.

    Args:
        name: its name.
        files: readers of its files, by ending.
        picture: the ending of its picture.
        text: as for `read_shards`.
    """
    try:
        said = captions(files, text, name)
    except InputError as problem:
        return Item(name, Refused(str(problem)))
    return Item(name, files[picture], said[0], files.get(MASK), others=said[1:])


def captions(files: dict[str, FileReader], text: str | None, name: str) -> tuple[str, ...]:
    """The captions of a sample: its `.txt` or `.caption` file, or a field of its `.json` file; ("",) if it has none.

    Args:
        files: readers of the sample's files, by ending.
        text: the field of the `.json` file; None to use the first of `CAPTION_NAMES`. If given, only `.json` is read.
        name: the sample's name, for messages.

    Raises:
        InputError: the caption is too long, not text, or the JSON is damaged.
    """
    where = f"the caption of {name}"
    for ending in () if text else (".txt", ".caption"):
        if ending in files:
            return (one_line(decode(_short(files[ending], where), where)),)
    if ".json" not in files:
        return ("",)
    said: dict[str, Any] = parse_json(_short(files[".json"], where), where, dict)
    fields = [name for name in ([text] if text else CAPTION_NAMES) if name in said]
    return next((found for name in fields if (found := wordings_of(said[name], where, name))), ("",))


def _short(read: FileReader, where: str) -> bytes:
    if (read.size or 0) > TEXT_BYTES:
        raise InputError(f"{where} has {read.size:,} bytes; it may have {TEXT_BYTES:,}")
    return read()
