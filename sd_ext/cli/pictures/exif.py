"""Texts in the EXIF data of JPEG and WebP files, read without decoding pixels.

AUTOMATIC1111 writes its `parameters` as the tag UserComment: `UNICODE`, NUL, and UTF-16, most significant byte first;
others write it the other way round, or as UTF-8.
ComfyUI writes `prompt:` and `workflow:` with JSON into tags for camera names. Our record is the tag MakerNote, which
the standard leaves to whoever makes the file: `sd_ext`, NUL, and UTF-8.

Sources: EXIF 2.32 (CIPA DC-008), 4.6.5; JPEG (ITU T.81), annex B; WebP container specification.
"""

from __future__ import annotations

import codecs
import struct
import unicodedata
from pathlib import Path
from typing import IO

from ...errors import InputError
from ...plain_files import open_file
from .record import KEY

JPEG, RIFF, WEBP = b"\xff\xd8", b"RIFF", b"WEBP"
LONGEST = 2**22  # the most bytes of EXIF data that are read
HEADER = b"Exif\0\0"
EXIF_FOLDER, USER_COMMENT, MAKER_NOTE, SOFTWARE = 0x8769, 0x9286, 0x927C, 0x0131  # tags
TEXT, NUMBER, UNDEFINED = 2, 4, 7  # types of values
UNICODE, ASCII, OURS = b"UNICODE\0", b"ASCII\0\0\0", KEY.encode() + b"\0"
FOREIGN = "prompt", "workflow"  # what ComfyUI's texts begin with
ROOM_IN_JPEG = 65_533 - 2 * len(HEADER)  # bytes of EXIF data that one JPEG segment holds


def exif_of(parameters: str, record: str, software: str) -> bytes:
    """EXIF data, as Pillow's `save` takes it.

    Args:
        parameters: the text for other programs.
        record: our own, as JSON.
        software: name and version of the program.
    """
    # Not by Pillow, which gives these two tags the type BYTE; readers that keep to the standard expect UNDEFINED.
    comment, note = UNICODE + parameters.encode("utf-16-be"), OURS + record.encode()
    name = software.encode("ascii", "replace") + b"\0"
    size_of_first = 2 + 2 * 12 + 4 + len(name) + len(name) % 2
    pointer = (8 + size_of_first).to_bytes(4, "big")
    first = _folder(8, (SOFTWARE, TEXT, name), (EXIF_FOLDER, NUMBER, pointer))
    second = _folder(8 + size_of_first, (MAKER_NOTE, UNDEFINED, note), (USER_COMMENT, UNDEFINED, comment))
    return HEADER + b"MM\0*" + (8).to_bytes(4, "big") + first + second


def _folder(start: int, *tags: tuple[int, int, bytes]) -> bytes:
    """A directory of tags (TIFF 6.0, section 2), the most significant byte first.

    Args:
        start: its place in the data.
        tags: (tag, type, value), sorted by tag.
    """
    entries, values = b"", b""
    behind = start + 2 + 12 * len(tags) + 4
    for tag, kind, value in tags:
        count = 1 if kind == NUMBER else len(value)
        place = value.ljust(4, b"\0") if len(value) <= 4 else (behind + len(values)).to_bytes(4, "big")
        entries += struct.pack(">HHI", tag, kind, count) + place
        values += value + b"\0" * (len(value) % 2) if len(value) > 4 else b""
    return struct.pack(">H", len(tags)) + entries + bytes(4) + values


def read_exif_texts(path: Path) -> dict[str, str]:
    """Read the texts of a JPEG or WebP.

    Args:
        path: the file.

    Returns:
        "parameters", "sd_ext", "prompt", "workflow", "Software": those that are there.

    Raises:
        InputError: it is no plain file, is cut off, or its EXIF data are damaged.
    """
    try:
        with open_file(path) as file:
            found = _in_jpeg(file) if file.read(2) == JPEG else _in_webp(file)
        return _texts(found) if found else {}
    except InputError:
        raise
    except Exception as error:  # Pillow raises all kinds of errors for malformed EXIF data
        raise InputError(f"{path} cannot be read as a picture ({error})") from None


def _in_jpeg(file: IO[bytes]) -> bytes:
    """The EXIF data of a JPEG, which has been read up to its first marker; b"" if it has none."""
    while True:
        marker = _exactly(file, 2)
        if marker[0] != 0xFF:
            raise ValueError("a damaged segment")
        if marker[1] in (0xD9, 0xDA):  # the end, or the pixels
            return b""
        data = _exactly(file, int.from_bytes(_exactly(file, 2), "big") - 2)
        if marker[1] == 0xE1 and data.startswith(HEADER):
            return data[len(HEADER) :]


def _in_webp(file: IO[bytes]) -> bytes:
    """The EXIF data of a WebP; b"" if it has none."""
    file.seek(12)
    while kind := file.read(4):
        length = int.from_bytes(_exactly(file, 4), "little")
        if kind == b"EXIF":
            if length > LONGEST:
                raise ValueError(f"a text of {length:,} bytes")
            return _exactly(file, length).removeprefix(HEADER)
        file.seek(length + length % 2, 1)
    return b""


def _exactly(file: IO[bytes], size: int) -> bytes:
    """Read `size` bytes. Raises `ValueError` if the file ends before."""
    data = file.read(size) if size >= 0 else b""
    if len(data) != size:
        raise ValueError("it is cut off")
    return data


def _unicode(data: bytes) -> str:
    """A text marked as Unicode, which is UTF-16 in either order, with or without a mark, or UTF-8.

    Args:
        data: what stands behind the marker.

    Returns:
        The text; of two orders that are possible, the one in which it reads as text.

    Raises:
        UnicodeDecodeError: it is none of these.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    if b"\0" not in data and (text := _decoded(data, "utf-8-sig")) is not None:
        return text
    read = [text for order in ("utf-16-be", "utf-16-le") if (text := _decoded(data, order)) is not None]
    return max(read, key=_likeness) if read else data.decode("utf-16-be")


def _decoded(data: bytes, encoding: str) -> str | None:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError:
        return None


def _likeness(text: str) -> int:
    """How much a text reads as one, by its start: its ASCII characters, less those that texts do not have."""
    odd = ("Cc", "Cn", "Co", "Cs")  # control, unassigned, private, halves
    start = [char for char in text[:10_000] if not char.isspace()]
    return sum((char.isascii() and char.isprintable()) - (unicodedata.category(char) in odd) for char in start)


def _texts(data: bytes) -> dict[str, str]:
    from PIL import Image

    exif = Image.Exif()
    exif.load(HEADER + data)
    texts: dict[str, str] = {}
    for tag, value in exif.items():
        text = value if isinstance(value, str) else ""
        texts |= {"Software": text} if tag == SOFTWARE else {}
        texts |= {key: text[len(key) + 1 :] for key in FOREIGN if text[: len(key) + 1].lower() == f"{key}:"}
    folder = exif.get_ifd(EXIF_FOLDER)
    comment, note = folder.get(USER_COMMENT), folder.get(MAKER_NOTE)
    if isinstance(comment, bytes) and comment.startswith(UNICODE):
        texts["parameters"] = _unicode(comment[len(UNICODE) :])
    elif isinstance(comment, bytes) and comment.startswith(ASCII):
        texts["parameters"] = comment[len(ASCII) :].decode("utf-8")
    if isinstance(note, bytes) and note.startswith(OURS):
        texts[KEY] = note[len(OURS) :].decode()
    return texts
