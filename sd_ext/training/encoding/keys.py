"""Names of cache entries: digests of all inputs of an entry.

Before hashing, each part is written with its type and length, so that different lists of parts never give the same
bytes.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import torch

Part = Any  # str, bytes, bool, int, float, None, torch.dtype, or a tuple or list of them

LATENT, TEXT = "latent 2", "text 1"  # increase the number whenever the preparation of pictures or captions changes


def encode(part: Part) -> bytes:
    """The bytes of a part: one letter for its type, its length, its content.

    Raises:
        TypeError: the part is of a type that `Part` does not list.
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
    """The sha256 of parts, as 64 hexadecimal digits."""
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
    """The cache key of a picture's latent.

    Args:
        picture, size, crop, flipped: as returned by `Pictures.content`.
        encoder: the autoencoder's `Model.digest`.
        dtype: number format of the entry.
        more: anything else that the latent depends on, such as the precision that the autoencoder computes in.

    Returns:
        64 hexadecimal digits.
    """
    return key(LATENT, picture, tuple(size), tuple(crop), flipped, encoder, dtype, more)


def text_key(
    caption: str | tuple[int, ...], encoders: str | tuple[str, ...], dtype: torch.dtype | str, *more: Part
) -> str:
    """The cache key of a caption's text states.

    Args:
        caption: its token ids; or its text, if `encoders` or `more` identify the tokenizer as well.
        encoders: the text encoders' `Model.digest`.
        dtype: number format of the entry.
        more: anything else that the states depend on, such as skipped layers.

    Returns:
        64 hexadecimal digits.
    """
    return key(TEXT, caption, encoders, dtype, more)
