"""Adapters whose tensors lie on the disk: each is read when it is asked for, and not kept.

So LoRAs that are merged take as much memory as one module, however large they are:

    aside = Aside(folder)
    loras = [(aside.lora(read_lora(path)), 1.0) for path in paths]
    save_lora(merge(loras, aside=aside), "merged.safetensors", "kohya")
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..checked import raw
from .adapter import Adapter
from .lora import Lora


class Later(Mapping[str, Tensor]):
    """Tensors by name, each made anew whenever it is asked for.

    Args:
        names: the names.
        make: makes the tensor of a name.
    """

    def __init__(self, names: tuple[str, ...], make: Callable[[str], Tensor]):
        self._names, self._make = names, make

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class _Place(NamedTuple):
    start: int
    dtype: torch.dtype
    shape: torch.Size


class Aside:
    """A file without a name that tensors are put into; it is gone with this object or with the process.

    Args:
        folder: where it is; there should be room for all that is put aside.
    """

    def __init__(self, folder: str | Path | None = None):
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  it lives as long as this object

    def adapter(self, adapter: Adapter) -> Adapter:
        """The same adapter with its tensors put aside."""
        places = {name: self._put(tensor) for name, tensor in adapter.tensors.items()}
        return replace(adapter, tensors=Later(tuple(places), lambda name: self._get(places[name])))

    def lora(self, lora: Lora) -> Lora:
        """The same LoRA with its tensors put aside; bundled words stay in memory."""
        return replace(lora, adapters={module: self.adapter(adapter) for module, adapter in lora.adapters.items()})

    def _put(self, tensor: Tensor) -> _Place:
        start = self._file.seek(0, 2)
        self._file.write(raw(tensor))
        return _Place(start, tensor.dtype, tensor.shape)

    def _get(self, place: _Place) -> Tensor:
        self._file.seek(place.start)
        data = bytearray(self._file.read(place.shape.numel() * place.dtype.itemsize))
        return torch.frombuffer(data, dtype=place.dtype).reshape(place.shape)
