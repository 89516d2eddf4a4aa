"""What a file that should hold weights is instead, by its first bytes: an HTML page, a pickle, a git-LFS pointer.

Such files have the right name and the wrong contents, most often because a site sent something else for a download.
"""

from __future__ import annotations

import json

FIRST = 1024  # bytes that are looked at

PICKLE = "is a pickle, which can run any code when it is read; ask for .safetensors"
PAGE = "is an HTML page, which a site sent in place of the file, such as one for signing in; download it anew"
ARCHIVE = "is an archive ({}), which is to be unpacked first"
PICTURE = "is a picture ({}) and holds no weights"
BEGINNINGS = (
    (b"GGUF", "is a GGUF file, whose weights are quantized; ask for a .safetensors file"),
    *((b"\x80" + bytes([protocol]), PICKLE) for protocol in (2, 3, 4, 5)),
    (b"version https://git-lfs", "is a git-LFS pointer, which only names the file; fetch that with `git lfs pull`"),
    (b"\x1f\x8b", ARCHIVE.format("gzip")),
    (b"7z\xbc\xaf\x27\x1c", ARCHIVE.format("7z")),
    (b"Rar!", ARCHIVE.format("rar")),
    (b"\x89PNG", PICTURE.format("PNG")),
    (b"\xff\xd8\xff", PICTURE.format("JPEG")),
    (b"GIF8", PICTURE.format("GIF")),
    (b"\x89HDF", "is an HDF5 file, as Keras writes them; ask for a .safetensors file"),
    (b"\x93NUMPY", "is an array of numpy; ask for a .safetensors file"),
    (bytes(8), "begins with zeros, as files do whose download was broken off; download it anew"),
)
"""First bytes -> what the file is and what to do, to follow its name."""


def disguised(start: bytes) -> str:
    """What a file that is no safetensors file is, as the rest of a sentence after its name; "" if nothing tells.

    Args:
        start: the file's first `FIRST` bytes, or all of them if it has fewer.
    """
    if not start:
        return "is empty; download it anew"
    if _begins_a_header(start):
        return ""
    for beginning, sentence in BEGINNINGS:
        if start.startswith(beginning):
            return sentence
    if start.startswith(b"PK\x03\x04"):
        return PICKLE if b"data.pkl" in start else ARCHIVE.format("zip")
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return PICTURE.format("WebP")
    if start[257:262] == b"ustar":
        return ARCHIVE.format("tar")
    return _text(start)


def _begins_a_header(start: bytes) -> bool:
    """Whether these are a safetensors header's length, of eight bytes, and its first sign.

    A length may have the two bytes that a pickle begins with, or those of an archive: 640 is a pickle's, 35615 gzip's.
    """
    return any(start[:4]) and start[4:8] == bytes(4) and start[8:9] == b"{"


def _text(start: bytes) -> str:
    """The same for a text; the first eight bytes of a safetensors file, a small number, are none."""
    text = start.decode("utf-8-sig", "ignore").strip()
    if not text or b"\0" in start or not all(sign.isprintable() or sign.isspace() for sign in text):
        return ""
    if text[:20].lower().startswith(("<!doctype", "<html", "<head", "<?xml", "<body")):
        return PAGE
    if text.startswith(("{", "[")):
        return f"is a JSON text, as sites send them in place of a file{_said(text)}; download it anew"
    return f"is a text, which begins with {text[:40]!r}; it holds no weights"


def _said(text: str) -> str:
    """What the error in a JSON text says, in brackets; "" if it says none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return ""
    for name in ("error", "message", "detail") if isinstance(value, dict) else ():
        if isinstance(value.get(name), str):
            return f" ({value[name][:80]})"
    return ""
