"""Whether files are damaged: digests, and safetensors files with a checksum of the tensors in their header.

The latter for what a later process reads back and trusts, such as a checkpoint or an entry of a cache.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .errors import DamagedError
from .plain_files import why_not
from .tensors import storable

CONTENT = "content"  # the header's entry


def raw(tensor: Tensor) -> Any:
    """A tensor's bytes, of any number format, without a copy where they lie in order."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data


def checksum(name: str, tensors: Mapping[str, Tensor]) -> str:
    """Eight digits (CRC-32) that depend on the file's name, the tensors' names, types and shapes, and every bit."""
    shapes = json.dumps([[key, str(tensor.dtype), list(tensor.shape)] for key, tensor in sorted(tensors.items())])
    value = zlib.crc32(f"{name} {shapes}".encode())
    for _, tensor in sorted(tensors.items()):
        value = zlib.crc32(raw(tensor), value)
    return f"{value:08x}"


def file_digest(path: Path, skip: int = 0) -> str:
    """The SHA-256, in hexadecimal, of a file's bytes after the first `skip`."""
    made = hashlib.sha256()
    with path.open("rb") as file:
        file.seek(skip)
        while data := file.read(1 << 20):
            made.update(data)
    return made.hexdigest()


def save_checked(tensors: Mapping[str, Tensor], new: Path, name: str) -> None:
    """Fill a new file, of a block of `sd_ext.whole`.

    Args:
        tensors: what to write.
        new: where to.
        name: what is in the file, for its reader to ask for: another file in its place is damage too.
    """
    tensors = storable(tensors)
    save_file(tensors, new, {CONTENT: checksum(name, tensors)})


def load_checked(path: Path, name: str) -> dict[str, Tensor]:
    """The tensors that `save_checked` wrote, mapped from the file.

    Raises:
        DamagedError: the file does not hold them.
        OSError: it cannot be opened.
    """
    if (reason := why_not(path)) and path.exists():  # a pipe
        raise DamagedError(f"{path} {reason}")
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  # not a dictionary
            found = (file.metadata() or {}).get(CONTENT)
    except SafetensorError as error:
        raise DamagedError(f"{path} is damaged: {error}") from error
    if found != checksum(name, tensors):
        raise DamagedError(f"{path} is damaged: it does not hold what was written into it")
    return tensors
