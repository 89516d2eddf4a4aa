"""The header of a safetensors file: the names, number formats and shapes of its tensors, and what its maker wrote.

It is JSON at the start of the file (https://github.com/huggingface/safetensors), so reading it needs neither torch nor
the tensors, however large they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..declared import shown
from ..disguised import FIRST, disguised
from ..errors import InputError, ModelError
from ..plain_files import open_file
from ..reading import HEADER_BYTES, parse_json

NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
"""Number formats as a header has them -> as torch calls them. Others occur only in what is not a weight."""


class Entry(NamedTuple):
    """What a header says of a tensor: its number format, such as "F16", and its shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    Args:
        path: the file.
        tensors: name -> number format and shape.
        metadata: the texts that the maker of the file added, by key.
    """

    path: Path
    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Read the header of a safetensors file.

    Raises:
        ModelError: not a plain file, or no complete safetensors file; says what it is if its first bytes tell.
    """
    try:
        with open_file(path) as file:
            start = file.read(FIRST)
            if what := disguised(start):
                raise InputError(f"{path} {what}")
            length = int.from_bytes(start[:8], "little")
            size = file.seek(0, 2)
            if len(start) < 8 or not 2 <= length <= min(HEADER_BYTES, size - 8):
                raise InputError(f"{path} is not a complete safetensors file")
            file.seek(8)
            text = file.read(length)
        entries = parse_json(text, f"the header of {path}", dict[str, Any])
        metadata = entries.pop("__metadata__", {})
        tensors = {name: _entry(path, name, entry, size - 8 - length) for name, entry in entries.items()}
    except InputError as error:
        raise ModelError(str(error)) from None
    kept = metadata if isinstance(metadata, dict) else {}
    return Header(path, tensors, {key: value for key, value in kept.items() if isinstance(value, str)})


def _entry(path: Path, name: str, entry: Any, size: int) -> Entry:
    """Check one entry of a header; `size` is how many bytes of tensors the file holds."""
    dtype, shape, begin, end = None, [], 0, 0
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        whole = False
    if not whole or not isinstance(dtype, str) or not begin <= end <= size or math.prod(shape) > 8 * size:
        raise InputError(f"{path} is damaged or cut off: its header does not fit its tensor {shown(name)}")
    return Entry(dtype, tuple(shape))
