"""Reads folders of pictures: with a metadata file (the `imagefolder` convention), or with a text file beside each.

With metadata: `metadata.jsonl` has one JSON object a line, `metadata.csv` a header line. The fields are `file_name`,
`text` (in JSON also a list of texts, of which one is drawn each time), and optionally `split`, `mask_file_name` and
`repeats`. The file lies in the folder itself, or in its subfolders; then each subfolder's name is the split of its
pictures.

Without metadata: captions and masks lie beside the pictures, see `walk.Beside`. If asked, pictures in a subfolder
called `10_sks cat` are repeated ten times an epoch, and those without a caption get the caption "sks cat", as with
kohya's scripts.

An entry, caption or picture that cannot be used is a stand-in item, which is left out and named.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sd_ext.declared import check
from sd_ext.errors import InputError, UnknownNameError
from sd_ext.plain_files import read_text, why_not
from sd_ext.reading import parse_json, read_csv, read_lines
from sd_ext.training.data.items import (
    CAPTION_NAMES,
    FileReader,
    Item,
    Refused,
    check_repeats,
    inside,
    one_line,
    wordings_of,
)
from sd_ext.training.data.walk import Beside, Walk, walk

METADATA = ("metadata.jsonl", "metadata.csv")
FIELDS = ("file_name", "split", "mask_file_name", "repeats")


@dataclass
class Entry:
    """The checked fields of one metadata entry; captions are checked elsewhere, unknown fields are ignored."""

    file_name: str
    split: str | None = None
    mask_file_name: str | None = None


def subfolders(folder: Path) -> list[Path]:
    """The subfolders of a folder, without symbolic links."""
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.is_symlink())


def closed_folders(found: Walk) -> list[Item]:
    """Stand-in items for the folders that were not entered, which are thus reported among what is left out."""
    return [Item(found.name(path), Refused(reason)) for path, reason in found.closed.items()]


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


def rows(path: Path, within: Path) -> Iterator[tuple[str, dict[str, Any] | InputError]]:
    """Read a metadata file.

    Args:
        path: the file, `.csv` or JSON lines.
        within: the file must lie inside this folder, also after symbolic links are resolved.

    Yields:
        (place, entry): the place, such as file and line, is for messages. In place of a line that is no entry with a
        file_name, what is wrong with it.

    Raises:
        InputError: the file is not text or not CSV.
    """
    if path.suffix == ".csv":
        where = ""
        for where, entry in read_csv(path, within):
            other = any({";", "\t"} & set(name) for name in entry)
            why = "separate columns by commas" if other else "the first line must name the columns"
            yield where, entry if entry.get("file_name") else InputError(f"{where}: no file_name; {why}")
        if not where:
            yield f"{path}", InputError(f"{path} has no line below the first, which names the columns: file_name, text")
        return
    for number, line in read_lines(path, within):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            entry = parse_json(line.rstrip("\r\n"), where)
            check(entry, Entry, where)
            yield where, entry
        except InputError as problem:
            yield where, problem


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
    folder, mask = path.parent, entry.get("mask_file_name")
    picture = inside(folder, entry["file_name"], where)
    fields = [name for name in ([text] if text else CAPTION_NAMES) if name in entry]
    captions = next((said for name in fields if (said := wordings_of(entry[name], where, name))), ("",))
    strange = [name for name in entry if name not in FIELDS and name not in fields and name != text]
    masked = inside(folder, mask, where) if mask else None
    return Item(
        picture.relative_to(root).as_posix(),
        FileReader(picture, within=root),
        captions[0],
        FileReader(masked, within=root) if masked else None,
        check_repeats(entry.get("repeats"), where),
        others=captions[1:],
        files=(picture, masked) if masked else (picture,),
        notes=() if captions[0] or not strange else (f"its entry says {', '.join(strange)}, which is not read",),
    )


@dataclass
class Listed:
    """What the metadata of a folder lists.

    Args:
        items: the items of each entry that can be used, with the split that it belongs to.
        bad: stand-in items for the others, with their splits; None where it is not known.
        fields: all fields that any entry has.
    """

    items: list[tuple[Item, str]] = field(default_factory=list)
    bad: list[tuple[Item, str | None]] = field(default_factory=list)
    fields: set[str] = field(default_factory=set)


def listed(folder: Path, text: str | None = None) -> Listed:
    """Read all metadata of a folder; arguments and errors as for `read_metadata`."""
    found = Listed()
    for path, default in metadata_files(folder):
        for where, entry in rows(path, folder):
            place = where.removeprefix(f"{folder}{os.sep}")
            if isinstance(entry, InputError):
                found.bad.append((Item(place, Refused(str(entry))), None))
                continue
            split = entry.get("split") or default
            found.fields |= set(entry)
            try:
                found.items.append((metadata_item(path, folder, entry, text, where), split))
            except InputError as problem:
                found.bad.append((Item(f"{entry['file_name']} ({place})", Refused(str(problem))), split))
    return found


def read_metadata(folder: Path, split: str, text: str | None = None) -> list[Item]:
    """The pictures that the metadata lists for a split. Whether the files exist is not checked yet.

    Args:
        folder: a folder with `metadata.jsonl` or `metadata.csv`, or with subfolders that have one.
        split: the name of a split, or "all".
        text: the field with the captions; None to use the first of `text`, `caption`, `prompt` that says something.

    Raises:
        InputError: no picture with that split, or no entry that can be used.
        UnknownNameError: no entry has the field `text`.
    """
    found = listed(folder, text)
    items = [item for item, belongs in found.items if split in ("all", belongs)]
    bad = [item for item, belongs in found.bad if split in ("all", belongs) or belongs is None]
    if not items and bad:
        raise InputError(bad[0].read.reason)  # type: ignore[attr-defined]
    if not items:
        splits = {belongs for _, belongs in found.items}
        there = f"; there are {', '.join(sorted(splits))}" if splits else ""
        raise InputError(f"the metadata in {folder} lists no pictures with split {split!r}{there}")
    if text and text not in found.fields:
        raise UnknownNameError(f"field of the metadata in {folder}", text, found.fields)
    own = any(os.path.lexists(folder / name) for name in METADATA)
    return [*twice_noted(items), *bad, *([] if own else closed_folders(walk(folder)))]


def twice_noted(items: list[Item]) -> list[Item]:
    """The items, with a note on those whose picture has several entries."""
    times = Counter(item.name for item in items)
    return [
        replace(item, notes=(*item.notes, f"is listed {times[item.name]} times")) if times[item.name] > 1 else item
        for item in items
    ]


def picture_files(folder: Path) -> list[Path]:
    """All picture files in a folder and its subfolders, except masks and hidden files."""
    return walk(folder).pictures


def paired_item(path: Path, part: Path, root: Path, beside: Beside, folder_repeats: bool = False) -> Item:
    """Make an item of a picture, with the caption and mask files that lie beside it.

    If the caption file cannot be read, for example a link that leads out of `root`, the item refuses to be read and the
    picture is left out.

    Args:
        path: the picture.
        part: the folder of the split; the item's name is relative to it.
        root: the data folder, which links must not lead out of.
        beside: finds captions and masks.
        folder_repeats: whether names of folders such as `10_sks cat` say repeats and caption.
    """
    caption, repeats, notes = "", 1, []
    read: FileReader | Refused = FileReader(path, within=root)
    if path.parent != part and (numbered := re.fullmatch(r"(\d+)_(.*)", path.parent.name)):
        if not numbered[1].strip("0"):
            read = Refused(f"its folder {path.parent.name} says 0 repeats; rename it to train on it")
        elif not folder_repeats:
            notes.append(f"the {numbered[1]} of {path.parent.name} is a name; folder_repeats reads it as repeats")
        else:
            try:
                caption, repeats = one_line(numbered[2]), check_repeats(numbered[1], str(path.parent))
            except InputError as problem:
                raise InputError(f"{problem}; rename the folder, or leave out folder_repeats") from problem
    written, mask = beside.caption(path), beside.mask(path)
    if written:
        try:
            said = read_caption(written, root)
            caption = one_line(said)
            if (lines := len([line for line in said.splitlines() if line.strip()])) > 1:
                notes.append(f"the {lines} lines of its caption are read as one")
        except InputError as problem:
            read = Refused(f"its caption {written.name} {str(problem).removeprefix(f'{written} ')}")
    return Item(
        path.relative_to(part).as_posix(), read, caption, FileReader(mask, within=root) if mask else None, repeats,
        files=tuple(each for each in (path, written, mask) if each), notes=tuple(notes),
    )  # fmt: skip


def read_caption(path: Path, root: Path) -> str:
    """The text of a caption file, with its line breaks.

    Raises:
        InputError: it may not be read, is too large, or is no text.
    """
    if reason := why_not(path, root):
        raise InputError(f"{path} {reason}")
    return read_text(path)


def split_folder(folder: Path, split: str) -> Path:
    """The part of a folder without metadata that holds a split: the subfolder of that name.

    Raises:
        InputError: there is none. "train" and "all" are then the whole folder.
    """
    part = folder / split
    if part in subfolders(folder):
        return part
    if split not in ("train", "all"):
        raise InputError(f"{folder} has no metadata and no subfolder {split!r}, hence no such split")
    return folder


def read_pairs(folder: Path, split: str, folder_repeats: bool = False) -> list[Item]:
    """The pictures of a folder without metadata.

    Args:
        folder: the data folder.
        split: a split is a subfolder of that name; if there is none, "train" and "all" are the whole folder.
        folder_repeats: see `paired_item`.

    Raises:
        InputError: no such split, or no pictures in it.
    """
    part = split_folder(folder, split)
    found = walk(part, folder)
    beside = Beside(found.files)
    items = [paired_item(path, part, folder, beside, folder_repeats) for path in found.pictures]
    if not items:
        raise InputError(f"{part} holds no pictures")
    return [*items, *closed_folders(found)]
