"""An item: a picture that has not been read yet, with what is said about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from sd_ext.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
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
    """The bytes of a file, or of a part of one."""

    path: Path
    offset: int = 0
    size: int | None = None

    def __call__(self) -> bytes:
        if self.size is None:
            return self.path.read_bytes()
        with self.path.open("rb") as file:
            file.seek(self.offset)
            read = file.read(self.size)
        if len(read) < self.size:
            raise OSError(f"{self.path.name} ends {self.size - len(read)} bytes early")
        return read


def inside(folder: Path, name: str, where: str) -> Path:
    """The path of a file that metadata names.

    Raises:
        InputError: it leads out of the folder: metadata may be a stranger's.
    """
    path = PurePosixPath(name.replace("\\", "/"))  # also as Windows writes it
    if not name.strip() or path.is_absolute() or PureWindowsPath(name).drive or ".." in path.parts:
        raise InputError(f"{where}: {name!r} is not a path inside {folder}; give one relative to it, without '..'")
    return folder / path


def one_line(text: object) -> str:
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
    if count < 1:
        raise InputError(f"{where}: repeats is {value!r}; it must be a whole number from 1 on")
    return count
