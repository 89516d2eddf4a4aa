"""Names of cache entries: digests of everything an entry is made from.

Each part is written with its kind and length before it is hashed, so that no two lists of parts are written alike.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor, nn

Part = Any  # str, bytes, bool, int, float, None, torch.dtype, or a tuple or list of them

LATENT, TEXT = "latent 1", "text 1"  # raise the number when pictures or captions are prepared in another way
VOLATILE = {
    "transformers_version",
    "dtype",
    "torch_dtype",
    "architectures",
    "name_or_path",
}  # say nothing of the result
BLOCK = 2**24  # bytes hashed at a time


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
        encoder: the autoencoder's `model_digest`.
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
        encoders: the text encoders' `model_digest`.
        dtype: of the entry.
        more: whatever else it depends on, such as the layers skipped.
    """
    return key(TEXT, caption, encoders, dtype, more)


def tensor_digest(tensor: Tensor) -> bytes:
    """sha256 of number format, shape and bytes."""
    digest = hashlib.sha256(encode((tensor.dtype, tuple(tensor.shape))))
    for block in tensor.detach().contiguous().reshape(-1).view(torch.uint8).split(BLOCK):
        digest.update(block.cpu().numpy().data)
    return digest.digest()


def settings(module: nn.Module) -> str:
    """A model's configuration as JSON, without where it came from; empty if it has none."""
    config: Any = getattr(module, "config", {})
    config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    said = {name: value for name, value in config.items() if not name.startswith("_") and name not in VOLATILE}
    return json.dumps(said, sort_keys=True, default=str)


def model_digest(module: nn.Module) -> str:
    """sha256 of a model's class, configuration and weights, 64 hexadecimal digits.

    The same for the same weights in another folder or on another device; another for another number format.
    """
    weights = sorted(module.state_dict().items())
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing lets other threads run
        digests = list(pool.map(lambda item: tensor_digest(item[1]), weights))
    names = [name for name, _ in weights]
    return key(type(module).__name__, settings(module), names, digests)
