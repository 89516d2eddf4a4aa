"""Safetensors files: read with their header, written whole or not at all, and the same bytes every time."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ... import whole
from ...checked import file_digest
from ...errors import InputError
from ...models import PICKLES, refuse_pickle
from ...reading import open_tensors, parse_json
from ...tensors import storable

MODEL_HASH = "sshs_model_hash"

log = logging.getLogger(__name__)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the header's text entries of a safetensors file, nothing executed.

    A file whose tensors are not those that its header tells of is named in a warning; it is read all the same, since
    there are programs that change tensors and leave the header.

    Raises:
        InputError: no such file, a pickle, or not a whole safetensors file.
    """
    if path.suffix.lower() in PICKLES:
        raise refuse_pickle(path)
    with open_tensors(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  it has no __iter__
        header = dict(file.metadata() or {})
    if not holds_what_it_tells(path, header):
        log.warning(
            "%s is damaged, or was changed by a program that did not say so: its tensors are not those that its header "
            "tells of (%s)", path, MODEL_HASH,
        )  # fmt: skip
    return tensors, header


def holds_what_it_tells(path: Path, header: Mapping[str, str]) -> bool:
    """Whether the hash in a LoRA's header is that of its tensors; True where there is none.

    The hash is kohya's `sshs_model_hash`: SHA-256 of all that follows the header. The older `sshs_legacy_hash`, which
    stands beside it, is of 64 KiB only and is not compared.
    """
    told = header.get(MODEL_HASH, "")
    if not told:
        return True
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    return file_digest(path, start) == told.lower().removeprefix("0x")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file that appears whole, with its header's entries sorted.

    Raises:
        WriteError: the disk is full or the folder cannot be written to; what was there is left as it was.
    """
    with whole.file(path) as new:
        save_file(dict(tensors), new, dict(metadata))
        _sort_header(new)


def _sort_header(new: Path) -> None:
    """Sort the header's text entries: the library writes them in an order that differs from process to process."""
    with open(new, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(length), str(new))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > length:  # cannot be: the same entries in the same notation
            raise InputError(f"the header of {new} cannot be sorted")
        file.seek(8)
        file.write(text.ljust(length))


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> tuple[dict[str, Tensor], str]:
    """The tensors in another type (None: their own), and a sentence on values that became zero, or nothing.

    Raises:
        InputError: a value is too large for the type, or all of a tensor would become zero.
    """
    tensors = storable(tensors)
    if dtype is None:
        return tensors, ""
    made, lost, total, largest = {}, 0, 0, 0.0
    for name, tensor in tensors.items():
        made[name] = tensor if name.endswith(".alpha") else tensor.to(dtype)  # one number, and a scale: kept whole
        if not made[name].isfinite().all():
            worst = tensor.abs().max().item()
            raise InputError(f"{name} holds {worst:.3g}, too large for {dtype}; choose bfloat16 or float32")
        gone = (made[name] == 0) & (tensor != 0)
        count = int(gone.sum())
        if count and count == int((tensor != 0).sum()):
            raise InputError(f"all of {name} is too small for {dtype} and would become 0; choose bfloat16 or float32")
        if count:
            lost, largest = lost + count, max(largest, tensor[gone].abs().max().item())
        total += tensor.numel()
    name = str(dtype).removeprefix("torch.")
    return made, f"{lost} of {total} values, up to {largest:.2g}, are too small for {name} and became 0" if lost else ""
