"""Pictures as the bytes of a file that says how they were made."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from ... import __version__
from .record import KEY, Record

if TYPE_CHECKING:
    from PIL.Image import Image


def encode(picture: Image, record: Record | None = None) -> bytes:
    """Encode a picture as PNG.

    Args:
        picture: the picture.
        record: how it was made, to be stored in a text; None stores nothing.

    Returns:
        The bytes of the file.
    """
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    if record is not None:
        chunks.add_itxt(KEY, record.text())
    chunks.add_text("Software", f"sd_ext {__version__}")
    file = io.BytesIO()
    picture.save(file, "PNG", pnginfo=chunks)
    return file.getvalue()
