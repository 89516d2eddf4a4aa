"""Tables with a column of pictures: data sets of the Hugging Face Hub, and local Parquet files, through `datasets`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd_ext.errors import InputError, UnknownNameError
from sd_ext.plain_files import PICTURE_BYTES, read_bytes
from sd_ext.training.data.items import CAPTION_NAMES, Item, wordings_of


def library() -> Any:
    """The module `datasets`, imported now.

    Raises:
        InputError: it is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError("Parquet files and data sets of the Hub need a library: pip install datasets") from error
    return datasets


@dataclass(frozen=True)
class CellReader:
    """A callable that returns the bytes of the picture in one row of a table.

    Args:
        rows: a `datasets.Dataset` whose pictures are not decoded.
        number: the row.
        column: the column with the picture.
        roots: a picture stored as a path must lie inside one of these folders.

    Raises (when called):
        OSError: the cell is empty, or names a file outside `roots`.
    """

    rows: Any
    number: int
    column: str
    roots: tuple[Path, ...]

    def __call__(self) -> bytes:
        cell = self.rows[self.number][self.column]
        if cell is None:
            raise OSError("there is no picture in this row")
        if cell["bytes"] is not None:
            return cell["bytes"]
        path = Path(cell["path"]).resolve()  # a table may name any file of this machine
        if not any(path.is_relative_to(root.resolve()) for root in self.roots):
            raise OSError(f"{cell['path']} lies outside the data set")
        return read_bytes(path, PICTURE_BYTES)


def read_table(
    source: str, split: str, image: str | None = None, text: str | None = None, files: list[Path] | None = None
) -> list[Item]:
    """List the pictures of a table: a data set on the Hub, or Parquet files.

    Args:
        source: an id on the Hub, or a local folder.
        split: the name of a split, or "all".
        image: the column with the pictures; None for the first picture column that is not called "mask".
        text: the column with the captions; None for `text`, `caption` or `prompt`, or the only text column.
        files: Parquet files to read instead of `source`, which then only names them in messages.

    Returns:
        One item for each row; a picture column called "mask" holds the masks.

    Raises:
        InputError: no such data set, split or column, or `datasets` is not installed.
    """
    datasets = library()
    try:
        if files:
            rows = datasets.load_dataset("parquet", data_files={split: [str(f) for f in files]}, split=split)
        else:
            rows = datasets.load_dataset(source, split=split)
    except Exception as error:  # `datasets` raises many types: for network, server or format errors
        raise InputError(f"the data set {source} (split {split!r}) cannot be loaded: {error}") from error
    pictures = [name for name, kind in rows.features.items() if isinstance(kind, datasets.Image)]
    image = choose_image(pictures, image, source)
    text = choose_text(rows.features, text, source)
    mask = "mask" if "mask" in pictures and image != "mask" else None
    captions = list(rows[text]) if text else [""] * len(rows)
    for column in pictures:
        rows = rows.cast_column(column, datasets.Image(decode=False))
    parts = {column: rows.select_columns([column]) for column in (image, mask) if column}
    roots = allowed_roots(source, datasets)
    masked = parts[mask].with_format("arrow")[:][mask].is_valid().to_pylist() if mask else [False] * len(rows)

    def reader(number: int, column: str) -> CellReader:
        return CellReader(parts[column], number, column, roots)

    return [
        Item(
            f"{source}[{n}]", reader(n, image), said[0], reader(n, mask) if mask and masked[n] else None,
            others=said[1:],
        )
        for n, each in enumerate(captions)
        for said in [wordings_of(each, f"{source}[{n}]", text or "") or ("",)]
    ]  # fmt: skip


def allowed_roots(source: str, datasets: Any) -> tuple[Path, ...]:
    """The folders that a table may name files in: the caches of the Hub and of `datasets`, and the data folder."""
    from huggingface_hub import constants

    local = (Path(source),) if Path(source).is_dir() else ()
    return (*local, Path(constants.HF_HUB_CACHE), Path(datasets.config.HF_DATASETS_CACHE))


def choose_image(pictures: list[str], named: str | None, source: str) -> str:
    """The picture column to use: `named`, or the first of `pictures` that is not called "mask".

    Raises:
        InputError: there is no picture column, or none called `named`.
    """
    if named:
        if named not in pictures:
            raise UnknownNameError(f"column of pictures in {source}", named, pictures)
        return named
    if not pictures:
        raise InputError(f"{source} has no column of pictures")
    return next((name for name in pictures if name != "mask"), pictures[0])


def choose_text(features: Any, named: str | None, source: str) -> str | None:
    """The caption column to use: `named`, a customary name, or the only text column; None if there is no text column.

    Raises:
        InputError: there are several text columns of other names, or none called `named`.
    """
    strings = [name for name, kind in features.items() if is_text(getattr(kind, "feature", kind))]  # or lists of them
    if named:
        if named not in strings:
            raise UnknownNameError(f"column of text in {source}", named, strings)
        return named
    known = [name for name in CAPTION_NAMES if name in strings]
    if not known and len(strings) > 1:
        raise InputError(f"which column of {source} holds the captions? There are {', '.join(strings)}; name one")
    return (known or strings or [None])[0]


def is_text(kind: Any) -> bool:
    """Whether a column's type is text."""
    return getattr(kind, "dtype", None) in ("string", "large_string")
