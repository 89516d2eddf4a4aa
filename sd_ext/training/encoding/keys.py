"""Names of cache entries: digests of everything an entry is made from.

Each part is written with its kind and length before it is hashed, so that no two lists of parts are written alike.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import torch

Part = Any  # str, bytes, bool, int, float, None, torch.dtype, or a tuple or list of them

LATENT, TEXT = "latent 1", "text 1"  # raise the number when pictures or captions are prepared in another way


def encode(part: Part) -> bytes:
    """A part with its kind and length.

    Raises:
        TypeError: a kind without an unambiguous form.
    """
    if isinstance(part, (tuple, list)):
        kind, data = b"t", b"".join(encode(p) for p in part)
    elif part is None:
        kind, data = b"n", b""
    elif isinstance(part, bool):
        kind, data = b"o", bytes([part])
    elif isinstance(part, str):
        kind, data = b"s", part.encode("utf-8", "surrogatepass")
    elif isinstance(part, bytes):
        kind, data = b"b", part
    elif isinstance(part, int):
        kind, data = b"i", str(part).encode()
    elif isinstance(part, float):
        kind, data = b"f", struct.pack(">d", part)
    elif isinstance(part, torch.dtype):
        kind, data = b"d", str(part).encode()
    else:
        raise TypeError(f"no cache key can be made from {type(part).__name__}")
    return kind + struct.pack(">Q", len(data)) + data


def key(*parts: Part) -> str:
    """sha256 of the parts, 64 hexadecimal digits."""
    return hashlib.sha256(encode(parts)).hexdigest()


def latent_key(
    picture: str,
    size: tuple[int, int],
    crop: tuple[int, int],
    flipped: bool,
    encoder: str,
    dtype: torch.dtype | str,
    *more: Part,
) -> str:
    """The name of what an autoencoder made of a picture.

    Args:
        picture, size, crop, flipped: as `Pictures.content` gives them.
        encoder: the autoencoder's `Model.digest`.
        dtype: of the entry.
        more: whatever else it depends on, such as the precision that the autoencoder computes in.
    """
    return key(LATENT, picture, tuple(size), tuple(crop), flipped, encoder, dtype, more)


def text_key(
    caption: str | tuple[int, ...], encoders: str | tuple[str, ...], dtype: torch.dtype | str, *more: Part
) -> str:
    """The name of what text encoders made of a caption.

    Args:
        caption: its text, the tokenizer then being among `more`; better, its token ids.
        encoders: the text encoders' `Model.digest`.
        dtype: of the entry.
        more: whatever else it depends on, such as the layers skipped.
    """
    return key(TEXT, caption, encoders, dtype, more)
