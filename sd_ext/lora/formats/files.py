"""Safetensors files of LoRAs: read with their header, written completely or not at all, always with the same bytes."""

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
FLOAT8 = torch.float8_e4m3fn, torch.float8_e5m2

log = logging.getLogger(__name__)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the header of a safetensors file. No code in it is executed.

    If the header's hash does not match the tensors, a warning names the file, which is used all the same: there are
    programs that change tensors and keep the old header.

    Args:
        path: the file.

    Returns:
        The tensors by key, and the header's entries.

    Raises:
        InputError: no such file, a pickle, or not a complete safetensors file.
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
    """Whether the hash in a LoRA's header matches its tensors; True if there is no hash.

    The hash is kohya's `sshs_model_hash`, the SHA-256 of everything after the header. The older `sshs_legacy_hash`
    covers only 64 KiB and is not checked.

    Args:
        path: the file.
        header: its header's entries.
    """
    told = header.get(MODEL_HASH, "")
    if not told:
        return True
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    return file_digest(path, start) == told.lower().removeprefix("0x")


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose header entries are sorted. It appears completely or not at all.

    Args:
        path: the file; an existing one is replaced.
        tensors: the tensors by key.
        metadata: the header's entries.

    Raises:
        WriteError: the disk is full, or the folder cannot be written to; an existing file is left unchanged.
    """
    with whole.file(path) as new:
        save_file(dict(tensors), new, dict(metadata))
        _sort_header(new)


def _sort_header(new: Path) -> None:
    """Sort the header's text entries; the safetensors library's order differs between processes."""
    with open(new, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = parse_json(file.read(length), str(new))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) > length:  # cannot happen: the same entries in the same notation
            raise InputError(f"the header of {new} cannot be sorted")
        file.seek(8)
        file.write(text.ljust(length))


def readable(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Convert tensors of the 8-bit floating-point types, which nothing can be computed in, to float16.

    Every value of float8_e4m3fn and float8_e5m2 is one of float16's.

    Args:
        tensors: by key.

    Returns:
        The tensors, and a sentence on the conversion, "" if there was none.
    """
    small = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values() if tensor.dtype in FLOAT8}
    made = {name: tensor.half() if tensor.dtype in FLOAT8 else tensor for name, tensor in tensors.items()}
    if not small:
        return made, ""
    return made, f"it holds {' and '.join(sorted(small))}, which is read as float16 with the same values"


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> tuple[dict[str, Tensor], str]:
    """Convert tensors to another dtype.

    Args:
        tensors: by key; alphas keep their dtype.
        dtype: the new dtype; None keeps each tensor's own.

    Returns:
        The tensors, and a sentence on values that became zero, "" if there are none.

    Raises:
        InputError: a value is too large for the dtype, or every value of a tensor would become zero.
    """
    tensors = storable(tensors)
    if dtype is None:
        return tensors, ""
    made, lost, total, largest = {}, 0, 0, 0.0
    for name, tensor in tensors.items():
        exact = name.endswith(".alpha") or not tensor.is_floating_point()  # single numbers, places
        made[name] = tensor if exact else tensor.to(dtype)
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
