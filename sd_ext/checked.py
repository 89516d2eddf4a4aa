"""Detect damaged files: digests of files, and safetensors files whose header holds a checksum of their tensors.

Such safetensors files (`save_checked`, `load_checked`) are for what a later process reads back and must be able to
trust, such as a checkpoint or a cache entry.
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

CONTENT = "content"  # the header entry that holds the checksum


def raw(tensor: Tensor) -> Any:
    """A tensor's bytes, of any dtype, as a memory view; copied only if it is not contiguous or not on the CPU."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data


def checksum(name: str, tensors: Mapping[str, Tensor]) -> str:
    """CRC-32 over a file's name and all its tensors: their names, dtypes, shapes and every bit.

    Args:
        name: what the file is called (see `save_checked`).
        tensors: its tensors by name.

    Returns:
        Eight hexadecimal digits.
    """
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
    """Write a safetensors file whose header holds the checksum of its tensors.

    Args:
        tensors: what to write.
        new: the path to write to, usually the one that `sd_ext.whole.file` yields.
        name: a name for the contents, part of the checksum; the reader must give the same, so that a file which holds
            something else counts as damaged.
    """
    tensors = storable(tensors)
    save_file(tensors, new, {CONTENT: checksum(name, tensors)})


def load_checked(path: Path, name: str) -> dict[str, Tensor]:
    """Read the tensors that `save_checked` wrote, and verify them.

    Args:
        path: the file.
        name: the name that was given to `save_checked`.

    Returns:
        The tensors by name, on the CPU.

    Raises:
        DamagedError: the contents do not match the checksum, or it is not a safetensors file.
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
