"""Folders of pictures: with metadata (the `imagefolder` convention), or each with a text file of the same name.

`metadata.jsonl` has one JSON object a line, `metadata.csv` a header: `file_name`, `text`, and, where wanted, `split`,
`mask_file_name`, `repeats`. It lies in the folder, or in its subfolders, whose names are then the splits. Without
metadata `cat.png` has its caption in `cat.txt` or `cat.caption` and its mask in `cat.mask.png` or `cat-masklabel.png`;
a subfolder called `10_sks cat`, as for kohya's scripts, repeats its pictures ten times, and "sks cat" is the caption of
those that have none.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.training.data.items import CAPTION_NAMES, SUFFIXES, FileReader, Item, check_repeats, inside, one_line

METADATA = ("metadata.jsonl", "metadata.csv")
MASK_ENDINGS = (".mask", "-masklabel")


def metadata_files(folder: Path) -> list[tuple[Path, str]]:
    """(file, split of the entries that name none), the folder's own or else those of its subfolders."""
    for folders in ([folder], sorted(p for p in folder.iterdir() if p.is_dir())):
        found = []
        for parent in folders:
            here = [parent / name for name in METADATA if (parent / name).is_file()]
            if len(here) > 1:
                raise InputError(f"{parent} holds both {' and '.join(METADATA)}; remove one")
            found += [(path, "train" if parent == folder else parent.name) for path in here]
        if found:
            return found
    return []


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, entry) for each entry of a metadata file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}") from error
    if path.suffix == ".csv":
        for number, entry in enumerate(csv.DictReader(text.splitlines()), 2):
            if not entry.get("file_name"):
                raise InputError(f"{path}, line {number}: no file_name; the first line must name the columns")
            yield f"{path}, line {number}", entry
        return
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            named = isinstance(entry["file_name"], str)
        except (ValueError, KeyError, TypeError):
            named = False
        if not named:
            raise InputError(f"{path}, line {number}: not a JSON object with a file_name: {line[:60]!r}")
        yield f"{path}, line {number}", entry


def metadata_item(folder: Path, root: Path, entry: dict[str, Any], text: str | None, where: str) -> Item:
    """The item of one entry, whose paths are relative to `folder`; its name is relative to `root`."""
    names = [name for name in ([text] if text else CAPTION_NAMES) if name in entry]
    path, mask = inside(folder, entry["file_name"], where), entry.get("mask_file_name")
    return Item(
        path.relative_to(root).as_posix(),
        FileReader(path),
        one_line(entry[names[0]]) if names else "",
        FileReader(inside(folder, str(mask), where)) if mask else None,
        check_repeats(entry.get("repeats"), where),
    )


def read_metadata(folder: Path, split: str, text: str | None = None) -> list[Item]:
    """The pictures of a split, or of "all", that the metadata lists, whether they exist or not.

    Args:
        folder: with `metadata.jsonl` or `metadata.csv`, or with subfolders that have one.
        split: a name, or "all".
        text: the field that holds captions; None for `text`, `caption` or `prompt`.
    """
    items, splits, fields = [], set(), set()
    for path, default in metadata_files(folder):
        for where, entry in rows(path):
            belongs = str(entry.get("split") or default)
            splits.add(belongs)
            fields |= {str(field) for field in entry}
            if split in ("all", belongs):
                items.append(metadata_item(path.parent, folder, entry, text, where))
    if not items:
        there = f"; there are {', '.join(sorted(splits))}" if splits else ""
        raise InputError(f"the metadata in {folder} lists no pictures with split {split!r}{there}")
    if text and text not in fields:
        raise UnknownNameError(f"field of the metadata in {folder}", text, fields)
    return items


def picture_files(folder: Path) -> list[Path]:
    """Every picture in a folder and its subfolders, masks and hidden files apart."""
    files = [p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and not p.stem.endswith(MASK_ENDINGS)]
    return sorted(p for p in files if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def paired_item(path: Path, root: Path) -> Item:
    """The item of a picture with the caption and mask that lie beside it."""
    numbered = re.fullmatch(r"(\d+)_(.*)", path.parent.name) if path.parent != root else None
    caption = one_line(numbered[2]) if numbered else ""
    for suffix in (".txt", ".caption"):
        if (written := path.with_suffix(suffix)).is_file():
            try:
                caption = one_line(written.read_text(encoding="utf-8-sig"))
            except UnicodeDecodeError as error:
                raise InputError(f"{written} is not UTF-8 text: {error}") from error
            break
    masks = (path.with_name(path.stem + ending + ".png") for ending in MASK_ENDINGS)
    mask = next((FileReader(m) for m in masks if m.is_file()), None)
    repeats = check_repeats(numbered[1], str(path.parent)) if numbered else 1
    return Item(path.relative_to(root).as_posix(), FileReader(path), caption, mask, repeats)


def read_pairs(folder: Path, split: str) -> list[Item]:
    """The pictures of a folder without metadata. A subfolder with the split's name is the split."""
    part = folder / split
    if not part.is_dir():
        if split not in ("train", "all"):
            raise InputError(f"{folder} has no metadata and no subfolder {split!r}, hence no such split")
        part = folder
    items = [paired_item(path, part) for path in picture_files(part)]
    if not items:
        raise InputError(f"{part} holds no pictures")
    return items
