"""Reads folders of pictures: with a metadata file (the `imagefolder` convention), or with a text file beside each.

With metadata: `metadata.jsonl` has one JSON object a line, `metadata.csv` a header line. The fields are `file_name`,
`text`, and optionally `split`, `mask_file_name` and `repeats`. The file lies in the folder itself, or in its
subfolders; then each subfolder's name is the split of its pictures.

Without metadata: the caption of `cat.png` is in `cat.txt` or `cat.caption`, its mask in `cat.mask.png` or
`cat-masklabel.png`. As with kohya's scripts, pictures in a subfolder called `10_sks cat` are repeated ten times an
epoch, and those without a caption get the caption "sks cat".
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd_ext.declared import check
from sd_ext.errors import InputError, UnknownNameError
from sd_ext.plain_files import read_text, why_not
from sd_ext.reading import read_csv, read_json_lines
from sd_ext.training.data.items import (
    CAPTION_NAMES,
    SUFFIXES,
    FileReader,
    Item,
    Refused,
    check_repeats,
    inside,
    one_line,
)

METADATA = ("metadata.jsonl", "metadata.csv")
MASK_ENDINGS = (".mask", "-masklabel")
NOT_FOLLOWED = "is a link to a folder, which is not followed; name that folder as data, or copy it here"


@dataclass
class Entry:
    """The checked fields of one metadata entry; captions are checked elsewhere, unknown fields are ignored."""

    file_name: str
    split: str | None = None
    mask_file_name: str | None = None


def subfolders(folder: Path) -> list[Path]:
    """The subfolders of a folder, without symbolic links."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink())


def linked_folders(folder: Path, pattern: str) -> list[Item]:
    """Stand-in items for subfolders that are symbolic links, which are not followed.

    Each item refuses to be read, so that the link is reported among the pictures that were left out.
    """
    links = [p for p in folder.glob(pattern) if p.is_symlink() and p.is_dir() and not _hidden(p, folder)]
    return [Item(p.relative_to(folder).as_posix(), Refused(NOT_FOLLOWED)) for p in sorted(links)]


def metadata_files(folder: Path) -> list[tuple[Path, str]]:
    """The metadata files of a folder, or, if it has none, of its subfolders.

    Returns:
        (file, default split) of each: the default split applies to entries that name no split.

    Raises:
        InputError: a folder has both `metadata.jsonl` and `metadata.csv`.
    """
    for folders in ([folder], subfolders(folder)):
        found = []
        for parent in folders:
            here = [parent / name for name in METADATA if os.path.lexists(parent / name)]
            if len(here) > 1:
                raise InputError(f"{parent} holds both {' and '.join(METADATA)}; remove one")
            found += [(path, "train" if parent == folder else parent.name) for path in here]
        if found:
            return found
    return []


def rows(path: Path, within: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read a metadata file.

    Args:
        path: the file, `.csv` or JSON lines.
        within: the file must lie inside this folder, also after symbolic links are resolved.

    Yields:
        (place, entry): the place, such as file and line, is for error messages.

    Raises:
        InputError: the file is not JSON lines or CSV, or an entry has no file_name; says where.
    """
    if path.suffix == ".csv":
        for where, entry in read_csv(path, within):
            if not entry.get("file_name"):
                raise InputError(f"{where}: no file_name; the first line must name the columns")
            yield where, entry
    else:
        for where, entry in read_json_lines(path, within=within):
            check(entry, Entry, where)
            yield where, entry


def metadata_item(path: Path, root: Path, entry: dict[str, Any], text: str | None, where: str) -> Item:
    """Make an item of a metadata entry.

    Args:
        path: the metadata file; file names in the entry are relative to its folder.
        root: the data folder; the item's name is the picture's path relative to it.
        entry: the entry, from `rows`.
        text: the field with the caption; None to try `CAPTION_NAMES`.
        where: the place of the entry, for messages.

    Raises:
        InputError: a path that leads out of the folder, or a caption or number of repeats of the wrong type.
    """
    folder, names = path.parent, [name for name in ([text] if text else CAPTION_NAMES) if name in entry]
    picture, mask = inside(folder, entry["file_name"], where), entry.get("mask_file_name")
    if names:
        check(entry[names[0]], str | float | None, where, names[0])
    return Item(
        picture.relative_to(root).as_posix(),
        FileReader(picture, within=root),
        one_line(entry[names[0]]) if names else "",
        FileReader(inside(folder, mask, where), within=root) if mask else None,
        check_repeats(entry.get("repeats"), where),
    )


def read_metadata(folder: Path, split: str, text: str | None = None) -> list[Item]:
    """The pictures that the metadata lists for a split. Whether the files exist is not checked yet.

    Args:
        folder: a folder with `metadata.jsonl` or `metadata.csv`, or with subfolders that have one.
        split: the name of a split, or "all".
        text: the field with the captions; None to use the first of `text`, `caption`, `prompt` that an entry has.

    Raises:
        InputError: no picture with that split, or damaged metadata.
        UnknownNameError: no entry has the field `text`.
    """
    items, splits, fields = [], set(), set()
    for path, default in metadata_files(folder):
        for where, entry in rows(path, folder):
            belongs = entry.get("split") or default
            splits.add(belongs)
            fields |= set(entry)
            if split in ("all", belongs):
                items.append(metadata_item(path, folder, entry, text, where))
    if not items:
        there = f"; there are {', '.join(sorted(splits))}" if splits else ""
        raise InputError(f"the metadata in {folder} lists no pictures with split {split!r}{there}")
    if text and text not in fields:
        raise UnknownNameError(f"field of the metadata in {folder}", text, fields)
    own = any(os.path.lexists(folder / name) for name in METADATA)
    return items if own else [*items, *linked_folders(folder, "*")]


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def picture_files(folder: Path) -> list[Path]:
    """All picture files in a folder and its subfolders, except masks and hidden files."""
    files = [p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.stem.endswith(MASK_ENDINGS)]
    return sorted(p for p in files if not _hidden(p, folder) and not (p.is_symlink() and p.is_dir()))


def paired_item(path: Path, part: Path, root: Path) -> Item:
    """Make an item of a picture, with the caption and mask files that lie beside it.

    If the caption file may not be read, for example a link that leads out of `root`, the item refuses to be read and
    the picture is left out.

    Args:
        path: the picture.
        part: the folder of the split; the item's name is relative to it.
        root: the data folder, which links must not lead out of.
    """
    numbered = re.fullmatch(r"(\d+)_(.*)", path.parent.name) if path.parent != part else None
    caption, read = one_line(numbered[2]) if numbered else "", FileReader(path, within=root)
    written = next((w for w in map(path.with_suffix, (".txt", ".caption")) if os.path.lexists(w)), None)
    if written and (reason := why_not(written, root)):
        read = Refused(f"its caption {written.name} {reason}")
    elif written:
        caption = one_line(read_text(written))
    masks = (path.with_name(path.stem + ending + ".png") for ending in MASK_ENDINGS)
    mask = next((FileReader(m, within=root) for m in masks if os.path.lexists(m)), None)
    repeats = check_repeats(numbered[1], str(path.parent)) if numbered else 1
    return Item(path.relative_to(part).as_posix(), read, caption, mask, repeats)


def read_pairs(folder: Path, split: str) -> list[Item]:
    """The pictures of a folder without metadata.

    Args:
        folder: the data folder.
        split: a split is a subfolder of that name; if there is none, "train" and "all" are the whole folder.

    Raises:
        InputError: no such split, or no pictures in it.
    """
    part = folder / split
    if part not in subfolders(folder):
        if split not in ("train", "all"):
            raise InputError(f"{folder} has no metadata and no subfolder {split!r}, hence no such split")
        part = folder
    items = [paired_item(path, part, folder) for path in picture_files(part)]
    if not items:
        raise InputError(f"{part} holds no pictures")
    return [*items, *linked_folders(part, "**/*")]
