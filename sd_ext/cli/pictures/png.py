"""Read the texts in a PNG without decoding its pixels, since a small file can declare a picture that fills the memory.

Source: PNG specification (third edition), sections 5.2 to 5.4 and 11.3.3.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import IO

from ...errors import InputError
from ...plain_files import open_file

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LONGEST = 2**20  # the most bytes that one text may have
MOST = 1000  # the most texts that a file may have
TEXTS = (b"tEXt", b"zTXt", b"iTXt")


def read_png_texts(path: Path) -> dict[str, str]:
    """Read the text chunks of a PNG.

    Args:
        path: the file.

    Returns:
        Keyword -> text; the last one if a keyword occurs twice.

    Raises:
        InputError: it is no plain file, or no complete PNG.
    """
    texts: dict[str, str] = {}
    try:
        with open_file(path) as file:
            if file.read(8) != SIGNATURE:
                raise ValueError("it is no PNG")
            while (kind_and_data := _next_chunk(file)) is not None:
                if kind_and_data[0] in TEXTS:
                    keyword, text = _text(*kind_and_data)
                    texts[keyword] = text
                    if len(texts) > MOST:
                        raise ValueError(f"it holds more than {MOST} texts")
    except InputError:
        raise
    except (OSError, ValueError, zlib.error) as error:
        raise InputError(f"{path} cannot be read as a picture ({error})") from None
    return texts


def _next_chunk(file: IO[bytes]) -> tuple[bytes, bytes] | None:
    """Read the next chunk and return (type, data), or None after the last. Only texts have their data read."""
    length, kind = int.from_bytes(_exactly(file, 4), "big"), _exactly(file, 4)
    if kind not in TEXTS:
        file.seek(length, 1)
        _exactly(file, 4)
        return None if kind == b"IEND" else (kind, b"")
    if length > LONGEST:
        raise ValueError(f"a text of {length:,} bytes")
    data = _exactly(file, length)
    if zlib.crc32(kind + data) != int.from_bytes(_exactly(file, 4), "big"):
        raise ValueError("a damaged text")
    return kind, data


def _exactly(file: IO[bytes], size: int) -> bytes:
    """Read `size` bytes. Raises `ValueError` if the file ends before."""
    data = file.read(size)
    if len(data) < size:
        raise ValueError("it is cut off")
    return data


def _text(kind: bytes, data: bytes) -> tuple[str, str]:
    """Decode a text chunk to (keyword, text). Raises `ValueError` if it is malformed."""
    keyword, _, rest = data.partition(b"\0")
    compressed, encoding = kind == b"zTXt", "latin-1"
    if compressed:
        rest = rest[1:]  # skip the compression method, since only one exists
    if kind == b"iTXt":
        compressed, encoding = rest[:1] == b"\1", "utf-8"
        rest = rest[2:].split(b"\0", 2)[-1]  # after flag, method, language, translated keyword
    if compressed:
        rest = zlib.decompressobj().decompress(rest, LONGEST + 1)
    if len(rest) > LONGEST:
        raise ValueError(f"a text of more than {LONGEST:,} bytes")
    return keyword.decode("latin-1"), rest.decode(encoding)
