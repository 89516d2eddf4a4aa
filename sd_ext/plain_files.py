"""Read plain files, as bytes or as text, up to a size limit. Named pipes, devices and sockets are never opened.

Text is UTF-8, with or without byte-order mark, or UTF-16 with one.
"""

from __future__ import annotations

import codecs
import os
import stat
from pathlib import Path
from typing import IO

from .errors import InputError

StrPath = str | os.PathLike[str]

MIB = 2**20
TEXT_BYTES = MIB
PICTURE_BYTES = 512 * MIB

_MARKS = (  # a file's first bytes -> its encoding
    (codecs.BOM_UTF32_LE, ""),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, ""),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_SPECIAL = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def why_not(path: StrPath, within: StrPath | None = None) -> str:
    """Why a path cannot be opened, as the end of a sentence such as "is a named pipe, not a file"; "" for a plain file.

    Args:
        path: any path, whether or not it exists.
        within: a folder that symbolic links must not lead out of.
    """
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)
        if within is not None and not Path(path).resolve().is_relative_to(Path(within).resolve()):
            return f"is a link that leads out of {within}"
    except FileNotFoundError:
        return "is a link that leads nowhere" if os.path.islink(path) else "is not there"
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long, or holds NUL; a circle of links
        return f"cannot be read ({getattr(error, 'strerror', None) or error})"
    return "" if kind == stat.S_IFREG else f"is {_SPECIAL.get(kind, 'something else')}, not a file"


def open_file(path: StrPath, within: StrPath | None = None) -> IO[bytes]:
    """Open a plain file for reading.

    Args:
        path: the file.
        within: a folder that symbolic links must not lead out of.

    Returns:
        The file, opened in binary mode.

    Raises:
        InputError: it does not exist, is not a plain file, lies outside `within`, or may not be read.
    """
    if reason := why_not(path, within):
        raise InputError(f"{path} {reason}")
    try:
        # If a pipe has taken its place meanwhile, opening it does not wait for a writer.
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        return os.fdopen(handle, "rb")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})") from None


def read_bytes(path: StrPath, limit: int, within: StrPath | None = None) -> bytes:
    """Read all bytes of a plain file.

    Args:
        path: the file.
        limit: the most bytes it may have.
        within: a folder that symbolic links must not lead out of.

    Raises:
        InputError: the file cannot be opened (see `open_file`), or has more than `limit` bytes.
    """
    try:
        with open_file(path, within) as file:
            size = os.fstat(file.fileno()).st_size
            data = b"" if size > limit else file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None
    if max(size, len(data)) > limit:
        raise InputError(f"{path} has {max(size, len(data)):,} bytes; such a file may have {limit:,}")
    return data


def read_text(path: StrPath, limit: int = TEXT_BYTES, within: StrPath | None = None) -> str:
    """Read a text file.

    Args:
        path: the file.
        limit: the most bytes it may have.
        within: a folder that symbolic links must not lead out of.

    Raises:
        InputError: see `read_bytes` and `decode`.
    """
    return decode(read_bytes(path, limit, within), str(path))


def decode(data: bytes, where: str) -> str:
    """Decode bytes as text: by their byte-order mark if there is one, else as UTF-8.

    Args:
        data: the bytes.
        where: the file, for messages.

    Raises:
        InputError: the bytes are in another encoding or no text at all; says what to do.
    """
    mark, encoding = next(((m, e) for m, e in _MARKS if data.startswith(m)), (b"", "utf-8"))
    if not encoding:
        raise InputError(f"{where} is UTF-32 text, which is not read; save it as UTF-8")
    try:
        text, problem = data[len(mark) :].decode(encoding), ""
    except UnicodeDecodeError as error:
        text, line = "", data.count(b"\n", 0, error.start) + 1
        problem = f"is not {encoding[:6].upper().rstrip('-')} text from line {line} on"
    if "\0" in text or (encoding == "utf-8" and b"\0" in data):
        problem = "holds NUL characters: it is no text, or UTF-16 without a byte-order mark"
    if problem:
        raise InputError(f"{where} {problem}; save it as UTF-8")
    return text
