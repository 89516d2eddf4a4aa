"""Pictures as the bytes of a file that says how they were made."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from ... import __version__
from ...errors import InputError
from . import a1111
from .exif import ROOM_IN_JPEG, exif_of
from .record import KEY, Record

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
HOW: dict[str, dict[str, Any]] = {
    "jpeg": {"quality": 95, "subsampling": 0},
    "webp": {"lossless": True},
}
"""Arguments of Pillow. PNG and WebP keep every pixel as it was drawn, JPEG about."""
LONGEST_IN_JPEG = 16_000  # characters of prompt and negative prompt together


def check_room(form: str, words: str) -> None:
    """Raise `InputError` for words that a file of this format cannot keep.

    Args:
        form: "png", "jpeg" or "webp".
        words: prompt and negative prompt.
    """
    if form == "jpeg" and len(words.encode("utf-16-be")) // 2 > LONGEST_IN_JPEG:
        raise InputError(f"a JPEG keeps no more than {LONGEST_IN_JPEG:,} characters of words; choose png or webp")


def encode(picture: Image, record: Record | None = None, form: str = "png") -> bytes:
    """Encode a picture, with the text that most programs read, and our own under one key.

    Args:
        picture: the picture.
        record: how it was made; None stores nothing of it.
        form: "png", "jpeg" or "webp".

    Returns:
        The bytes of the file.
    """
    from PIL.PngImagePlugin import PngInfo

    software, options = f"sd_ext {__version__}", dict(HOW.get(form, {}))
    texts = {"parameters": a1111.parameters(record), KEY: record.text()} if record else {}
    if form == "png":
        chunks = options["pnginfo"] = PngInfo()
        for key, text in texts.items():
            chunks.add_itxt(key, text)
        chunks.add_text("Software", software)
    elif texts:
        options["exif"] = exif_of(texts["parameters"], texts[KEY], software)
        if form == "jpeg" and len(options["exif"]) > ROOM_IN_JPEG:  # the picture is worth more than the second text
            options["exif"] = exif_of("", texts[KEY], software)
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()
