"""An item: a picture that has not been read yet, with what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from sd_ext.declared import shown
from sd_ext.errors import InputError
from sd_ext.plain_files import PICTURE_BYTES, open_file, read_bytes

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_REPEATS = 1000  # more is a mistake, such as a folder that begins with a year
CAPTION_NAMES = ("text", "caption", "prompt")  # of a field, where none is named; the first that is there


@dataclass(frozen=True)
class Item:
    """A picture of a data set.

    Args:
        name: what messages call it: its path in the data set.
        read: gives the bytes of its file.
        caption: what it shows; empty for none.
        mask: gives the bytes of a picture whose white is what to learn; None for all of it.
        repeats: how often an epoch holds it.
        weight: of its loss.
        prior: it is a class picture of prior preservation: its caption is used as it is.
    """

    name: str
    read: Callable[[], bytes]
    caption: str = ""
    mask: Callable[[], bytes] | None = None
    repeats: int = 1
    weight: float = 1.0
    prior: bool = False


@dataclass(frozen=True)
class FileReader:
    """The bytes of a file, or of a part of one.

    Args:
        path: the file.
        offset: where the part begins.
        size: its bytes; None for the whole file.
        within: a folder that links must not lead out of.

    Raises (when called):
        InputError: not a plain file, or one that leads out of `within`, or too large; also a part that is cut off.
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
    """What stands in place of a reader where nothing may be read; the item is left out, and `reason` is said."""

    reason: str

    def __call__(self) -> bytes:
        raise InputError(self.reason)


def inside(folder: Path, name: str, where: str) -> Path:
    """The path of a file that metadata names.

    Raises:
        InputError: it leads out of the folder: metadata may be a stranger's.
    """
    path = PurePosixPath(name.replace("\\", "/"))  # also as Windows writes it
    if not name.strip() or path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        raise InputError(f"{where}: {shown(name)} is not a path inside {folder}; give one relative to it, without '..'")
    return folder / path


def one_line(text: str | float | None) -> str:
    """A caption without line breaks and doubled spaces; None is no caption."""
    return "" if text is None else " ".join(str(text).split())


def check_repeats(value: object, where: str) -> int:
    """How often an epoch holds a picture; nothing (None or "") is once."""
    if value is None or value == "":
        return 1
    try:
        count = int(str(value))
    except ValueError:
        count = 0
    if not 1 <= count <= MAX_REPEATS:
        raise InputError(f"{where}: repeats is {shown(value)}; it must be a whole number from 1 to {MAX_REPEATS}")
    return count
