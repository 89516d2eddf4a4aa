"""Lists the pictures of a data source. The kind of source (folder, shards, table, Hub id) is detected."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from sd_ext.errors import InputError
from sd_ext.models import is_hub_id
from sd_ext.plain_files import why_not
from sd_ext.training.data.folders import metadata_files, read_metadata, read_pairs
from sd_ext.training.data.items import Item
from sd_ext.training.data.shards import read_shards
from sd_ext.training.data.shipped import shipped_sets
from sd_ext.training.data.tables import read_table
from sd_ext.training.data.walk import walk


def read_items(
    source: str | os.PathLike[str],
    split: str = "train",
    image: str | None = None,
    text: str | None = None,
    folder_repeats: bool = False,
) -> list[Item]:
    """List the items of a data source. Pictures are not read yet.

    Args:
        source: a folder of pictures with `metadata.jsonl` (or `.csv`) or with a text file beside each; `*.tar` shards
            or Parquet files, as a folder, a glob or one file; the name of a set that comes with this package, if no
            file or folder here is called so; or the id of a data set on the Hub.
        split: the split to list; "all" for all pictures. Shards have no splits.
        image: the column with the pictures, if the source is a table; None to find it.
        text: the column or field with the captions; None to find it.
        folder_repeats: whether names of folders such as `10_sks cat` say repeats and caption.

    Raises:
        InputError: the source does not exist or holds no pictures, its metadata is damaged, a path leads out of the
            folder, or the folder holds several kinds of data.
    """
    source = os.path.expanduser(os.fspath(source))
    if not source.strip():
        raise InputError(
            "no pictures named; give a folder, shards, a data set of the Hub, or high-contrast (ours) as data"
        )
    folder = Path(source)
    if folder.is_dir():
        return read_folder(folder, split, image, text, folder_repeats)
    if source.endswith((".tar", ".parquet")) or glob.has_magic(source):
        return read_files(source, sorted(Path(name) for name in glob.glob(source, recursive=True)), split, image, text)
    if folder.exists():
        raise InputError(f"{source} is a file; give a folder of pictures, *.tar shards or *.parquet files")
    if source in (ours := shipped_sets()):
        return read_folder(ours[source], split, image, text, folder_repeats)
    if not is_hub_id(source):
        raise InputError(f"no folder of pictures at {source}; with sd_ext comes {', '.join(ours) or 'none'}")
    try:
        return read_table(source, split, image, text)
    except InputError as error:
        raise InputError(f"no folder of pictures at {source}, and as a data set of the Hub: {error}") from error


def read_folder(
    folder: Path, split: str, image: str | None, text: str | None, folder_repeats: bool = False
) -> list[Item]:
    """The items of a folder: with metadata, of pictures with text files, of shards, or of Parquet files.

    Arguments and errors as for `read_items`.
    """
    if metadata_files(folder):
        return read_metadata(folder, split, text)
    there = walk(folder)
    kinds = {
        "pictures": there.pictures,
        "*.tar": sorted(folder.glob("*.tar")),
        "*.parquet": sorted(folder.rglob("*.parquet")),
    }
    found = [kind for kind, files in kinds.items() if files]
    if not found:
        links = "; links to other folders are not followed" if there.closed else ""
        raise InputError(f"{folder} holds no pictures and no metadata.jsonl, *.tar or *.parquet{links}")
    if len(found) > 1:
        raise InputError(f"{folder} holds {' and '.join(found)}; say which, for example {folder / found[-1]}")
    if found == ["*.tar"]:
        return read_files(str(folder), kinds["*.tar"], split, image, text, folder)
    if found == ["*.parquet"]:
        for path in kinds["*.parquet"]:  # checked here, since `datasets` follows any link
            if reason := why_not(path, folder):
                raise InputError(f"{path} {reason}; remove it")
        return read_table(str(folder), split, image, text)
    return read_pairs(folder, split, folder_repeats)


def read_files(
    source: str, files: list[Path], split: str, image: str | None, text: str | None, within: Path | None = None
) -> list[Item]:
    """The items of shards or Parquet files that are named by one path or a glob.

    Args:
        source: the path or glob, for messages.
        files: the files it matches.
        split, image, text: as for `read_items`.
        within: shards must lie inside this folder, also after symbolic links are resolved; None for no check.

    Raises:
        InputError: no files, files of other or several kinds, or a split of shards.
    """
    endings = {path.suffix for path in files}
    if not files:
        raise InputError(f"no file matches {source}")
    if endings == {".parquet"}:
        return read_table(source, split, image, text, files)
    if endings != {".tar"}:
        raise InputError(f"{source} names files that end in {', '.join(sorted(endings))}; give *.tar or *.parquet")
    if split not in ("train", "all"):
        raise InputError(f"shards have no splits, so none called {split!r}; name the shards that hold it")
    return read_shards(files, text, within)


def hold_out(items: Sequence[Item], share: float) -> tuple[list[Item], list[Item]]:
    """Split items into training and validation items.

    The choice depends on the items' names only, so it is the same in every run.

    Args:
        items: all items.
        share: share of the items to hold out, from 0 to 1; at least one is held out and at least one is kept.

    Returns:
        (items to train on, items to validate with).

    Raises:
        InputError: there are fewer than two items.
    """
    if len(items) < 2:
        raise InputError("a share of a single picture cannot be held out")
    ranked = sorted(items, key=lambda item: hashlib.sha256(item.name.encode()).digest())
    held = {item.name for item in ranked[: min(max(1, round(share * len(items))), len(items) - 1)]}
    return [i for i in items if i.name not in held], [i for i in items if i.name in held]
