"""Which files of a data folder a run does not use, and why."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from sd_ext.errors import InputError
from sd_ext.training.data.folders import METADATA, listed, metadata_files, split_folder
from sd_ext.training.data.items import Item
from sd_ext.training.data.shipped import shipped_sets
from sd_ext.training.data.walk import CAPTION_ENDINGS, MASK_ENDINGS, Beside, Walk, is_picture, walk

KINDS = {
    "an archive, which is not opened": (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar", ".bz2", ".xz"),
    "a video": (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"),
    "a raw or layered picture, which is not read; save it as PNG": (
        *(".psd", ".xcf", ".kra", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".rw2", ".exr", ".hdr", ".svg"),
    ),
    "a cache or a model": (".npz", ".npy", ".pt", ".pth", ".ckpt", ".safetensors"),
    "metadata of another name; only metadata.jsonl and metadata.csv are read": (".json", ".jsonl", ".csv", ".tsv"),
    "a Parquet file beside pictures": (".parquet",),
}


def folder_of(source: str | os.PathLike[str]) -> Path | None:
    """The folder that a source of data names; None if it is no folder, such as a data set of the Hub."""
    path = Path(os.path.expanduser(os.fspath(source)))
    return path if path.is_dir() else shipped_sets().get(os.fspath(source))


def unused_files(source: str | os.PathLike[str], split: str, items: Iterable[Item]) -> dict[str, str]:
    """The files of a data folder that belong to no item.

    Args:
        source: the source of the data, as for `read_items`.
        split: the split that is trained on.
        items: all items that were made of it, for training and validation, those that are left out as well.

    Returns:
        Name of each file, relative to the folder -> why it is not used. Empty for sources that are no folder of
        pictures.
    """
    folder = folder_of(source)
    if folder is None:
        return {}
    found, used = walk(folder), {path for item in items for path in item.files}
    metadata = [path for path, _ in metadata_files(folder)]
    if not metadata and not found.pictures:  # shards or tables
        return {}
    elsewhere = other_splits(folder, metadata, split, found)
    beside, own = Beside(found.files), {*used, *metadata}
    pictures = set(found.pictures)
    named = {(p.parent, name): p for p in sorted(pictures, reverse=True) for name in (p.stem, p.name)}
    reasons = {
        found.name(path): elsewhere.get(path) or why_unused(path, pictures, named, beside, bool(metadata))
        for path in found.files
        if path not in own
    }
    return reasons | {found.name(path): "hidden: its name begins with a dot" for path in found.hidden}


def other_splits(folder: Path, metadata: list[Path], split: str, found: Walk) -> Mapping[Path, str]:
    """The files that belong to another split than the one that is trained on, with that as the reason."""
    if metadata:
        return {p: f"of the split {s!r}" for item, s in listed(folder).items if s != split for p in item.files}
    try:
        part = split_folder(folder, split)
    except InputError:
        return {}
    outside = f"outside of {part.name}, the folder of the split"
    return {path: outside for path in found.files if part != folder and not path.is_relative_to(part)}


def why_unused(
    path: Path, pictures: set[Path], named: Mapping[tuple[Path, str], Path], beside: Beside, metadata: bool
) -> str:
    """Why a file that belongs to no picture is not used.

    Args:
        path: the file.
        pictures: all pictures of the folder.
        named: the same, by folder and name, with its ending and without.
        beside: finds captions and masks.
        metadata: whether the folder has metadata, so that files beside pictures mean nothing.
    """
    ending = path.suffix.lower()
    if path in pictures:
        return "a picture that the metadata does not list"
    if is_picture(path):
        mark = next(mark for mark in MASK_ENDINGS if path.stem.endswith(mark))
        if metadata:
            return "a mask that the metadata does not list"
        return f"named like a mask, and there is no picture {path.stem.removesuffix(mark)}"
    if ending in CAPTION_ENDINGS:
        if metadata:
            return "a text file, and captions are in the metadata"
        of = named.get((path.parent, path.stem))
        if of and (other := beside.caption(of)):
            return f"a caption, but {other.name} is taken for {of.name}"
        return f"a text, and there is no picture {path.stem}"
    if path.name in METADATA:
        return "metadata below a folder that has its own"
    return next((kind for kind, endings in KINDS.items() if ending in endings), "no picture, caption or metadata")
