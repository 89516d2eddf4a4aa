"""An item: one entry of a data set, with its caption, mask and weight. Its picture is read from disk later."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from sd_ext.declared import check, shown
from sd_ext.errors import InputError
from sd_ext.plain_files import PICTURE_BYTES, open_file, read_bytes

SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".avif", ".heic", ".heif"),
    *(".jp2", ".j2k", ".bmp", ".gif", ".tif", ".tiff", ".tga", ".qoi", ".ppm", ".pgm", ".pnm"),
)
MAX_REPEATS = 1000  # more is a mistake, such as a folder name that starts with a year ("2023_holidays")
CAPTION_NAMES = ("text", "caption", "prompt")  # caption fields that are tried in this order when none is named


@dataclass(frozen=True)
class Item:
    """One picture of a data set, not read yet.

    Args:
        name: its path in the data set, used in messages.
        read: returns the bytes of the picture file.
        caption: empty if it has none.
        mask: returns the bytes of the mask file, which is white where the picture is to be learned; None for no mask.
        repeats: how many times an epoch contains the picture.
        weight: factor of its loss.
        prior: True for a class picture of prior preservation, or one of regularisation; its caption gets no prefix and
            no augmentation.
        others: more captions of the same picture; each time one of all its captions is drawn.
        files: the files that it is read from, as far as they are files of their own.
        notes: what is worth knowing about it, such as what was not read; reported with the data.
        masks: whether its mask is used, be it a file or its transparency.
        flip: whether it is mirrored half of the times.
        prefix: put before its captions; None for the prefix of the run.
        group: which of several data sets it belongs to; "" where there is one.
    """

    name: str
    read: Callable[[], bytes]
    caption: str = ""
    mask: Callable[[], bytes] | None = None
    repeats: int = 1
    weight: float = 1.0
    prior: bool = False
    others: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    masks: bool = True
    flip: bool = False
    prefix: str | None = None
    group: str = ""

    @property
    def captions(self) -> tuple[str, ...]:
        """All its captions; none if it has none."""
        return (self.caption, *self.others) if self.caption else ()


@dataclass(frozen=True)
class FileReader:
    """A callable that returns the bytes of a file, or of a part of a file.

    Args:
        path: the file.
        offset: first byte of the part.
        size: length of the part in bytes; None for the whole file.
        within: the file must lie inside this folder, also after symbolic links are resolved; None for no check.

    Raises (when called):
        InputError: the path is no plain file, lies outside `within`, or is too large; or the file ends before the part.
    """

    path: Path
    offset: int = 0
    size: int | None = None
    within: Path | None = None

    def __call__(self) -> bytes:
        if self.size is None:
            return read_bytes(self.path, PICTURE_BYTES, self.within)
        if self.size > PICTURE_BYTES:
            raise InputError(f"{self.path.name} holds a member of {self.size:,} bytes; it may have {PICTURE_BYTES:,}")
        with open_file(self.path, self.within) as file:
            file.seek(self.offset)
            read = file.read(self.size)
        if len(read) < self.size:
            raise InputError(f"{self.path.name} ends {self.size - len(read)} bytes early")
        return read


@dataclass(frozen=True)
class Refused:
    """A reader for items that must not be read: the item is left out, and `reason` is reported."""

    reason: str

    def __call__(self) -> bytes:
        raise InputError(self.reason)


def inside(folder: Path, name: str, where: str) -> Path:
    """The path of a file that metadata names, checked because metadata may come from an untrusted source.

    Args:
        folder: the folder that file names are relative to.
        name: the file name in the metadata.
        where: the place of the entry, for the message.

    Raises:
        InputError: the name is absolute, empty, or contains "..".
    """
    path = PurePosixPath(name.replace("\\", "/"))  # Windows paths as well
    if not name.strip() or path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        raise InputError(f"{where}: {shown(name)} is not a path inside {folder}; give one relative to it, without '..'")
    return folder / path


def one_line(text: str | float | None) -> str:
    """A caption with line breaks and repeated spaces replaced by single spaces; "" for None."""
    return "" if text is None else " ".join(str(text).split())


def wordings_of(said: object, where: str, name: str) -> tuple[str, ...]:
    """The captions that metadata gives a picture: a text, a number, or a list of texts to choose from.

    Args:
        said: the value.
        where, name: the place of the entry and the field, for the message.

    Returns:
        Different captions, each on one line, without empty ones.

    Raises:
        InputError: it is something else.
    """
    check(said, str | float | None | list[str], where, name)
    several: Sequence[Any] = said if isinstance(said, list) else [said]
    return tuple(dict.fromkeys(text for each in several if (text := one_line(each))))


def check_repeats(value: object, where: str) -> int:
    """A number of repeats as an integer; None and "" mean 1.

    Raises:
        InputError: no whole number from 1 to `MAX_REPEATS`.
    """
    if value is None or value == "":
        return 1
    try:
        count = int(str(value))
    except ValueError:
        count = 0
    if not 1 <= count <= MAX_REPEATS:
        raise InputError(f"{where}: repeats is {shown(value)}; it must be a whole number from 1 to {MAX_REPEATS}")
    return count
