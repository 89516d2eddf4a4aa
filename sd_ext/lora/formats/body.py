"""Write a safetensors file tensor by tensor, so that it need not fit into memory, with the hashes LoRA files carry.

The format (https://github.com/huggingface/safetensors) has a header in JSON before all tensors, with their places. So
the tensors are first put into a working file as they come, and then copied in the order in which the safetensors
library writes them: larger number types first, then by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...checked import raw
from ...errors import InputError

TYPES = {
    torch.int64: "I64", torch.float64: "F64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Number types, in the order in which their tensors are written, and their names in a header."""
ORDER = {name: place for place, name in enumerate(TYPES.values())}
LEGACY = 0x100000, 0x110000  # the bytes of a file that `sshs_legacy_hash` covers
CHUNK = 2**20


class _Held(NamedTuple):
    dtype: str
    shape: list[int]
    start: int
    size: int


class Body:
    """The tensors of a file that is being written.

    Args:
        new: the working file, which the caller removes.
    """

    def __init__(self, new: Path):
        self._file = open(new, "w+b")  # noqa: SIM115  closed by `close`
        self._held: dict[str, _Held] = {}

    def close(self) -> None:
        """Close the working file."""
        self._file.close()

    def add(self, name: str, tensor: Tensor) -> None:
        """Add a tensor. Raises `InputError` for a number type that the format does not have."""
        if tensor.dtype not in TYPES:
            raise InputError(f"{name} holds {tensor.dtype}, which safetensors files cannot hold")
        start, data = self._file.seek(0, 2), raw(tensor)
        self._file.write(data)
        self._held[name] = _Held(TYPES[tensor.dtype], list(tensor.shape), start, len(data))

    def _ordered(self) -> list[tuple[str, _Held]]:
        return sorted(self._held.items(), key=lambda item: (ORDER[item[1].dtype], item[0]))

    def _header(self, metadata: Mapping[str, str]) -> bytes:
        """The beginning of the file: the length of the JSON, and the JSON, padded so that tensors are aligned."""
        entries: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
        end = 0
        for name, held in self._ordered():
            entries[name] = {"dtype": held.dtype, "shape": held.shape, "data_offsets": [end, end + held.size]}
            end += held.size
        text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
        text = text.ljust(-(-len(text) // 8) * 8)
        return len(text).to_bytes(8, "little") + text

    def _data(self) -> Iterator[bytes]:
        """The bytes of all tensors, in order, in pieces."""
        for _, held in self._ordered():
            self._file.seek(held.start)
            left = held.size
            while left:
                data = self._file.read(min(left, CHUNK))
                left -= len(data)
                yield data

    def hashes(self, trained: Mapping[str, str]) -> tuple[str, str]:
        """The hashes that A1111 expects in a header: `sshs_model_hash` and `sshs_legacy_hash`.

        Both are of a file that has only ss_ entries in its header, so that editing a title does not change them.

        Args:
            trained: the header's ss_ entries.

        Returns:
            The SHA-256 of everything after the header, and the first 8 digits of the SHA-256 of the 64 KiB after the
            first MiB of the file.
        """
        model, legacy, place = hashlib.sha256(), hashlib.sha256(), 0
        for number, data in enumerate(_chain(self._header(trained), self._data())):
            if number:
                model.update(data)
            legacy.update(data[max(0, LEGACY[0] - place) : max(0, LEGACY[1] - place)])
            place += len(data)
        return model.hexdigest(), legacy.hexdigest()[:8]

    def fill(self, new: Path, metadata: Mapping[str, str]) -> None:
        """Write all of the file.

        Args:
            new: the path to write to, as `sd_ext.whole.file` yields it.
            metadata: the header's entries, which are written sorted.
        """
        with open(new, "wb") as file:
            for data in _chain(self._header(metadata), self._data()):
                file.write(data)


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
