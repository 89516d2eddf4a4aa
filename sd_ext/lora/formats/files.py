"""Safetensors files of LoRAs: read with their header, written completely or not at all, always with the same bytes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ... import whole
from ...checked import file_digest
from ...errors import InputError
from ...models import PICKLES, refuse_pickle
from ...reading import open_tensors
from .body import Body

MODEL_HASH = "sshs_model_hash"
FLOAT8 = torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz

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


def write_tensors(
    path: Path,
    tensors: Iterable[tuple[str, Tensor]],
    header: Callable[[Body], Mapping[str, str]],
) -> None:
    """Write a safetensors file, one tensor at a time. It appears completely or not at all, always with the same bytes.

    Args:
        path: the file; an existing one is replaced.
        tensors: (key, tensor) pairs; each tensor may go when the next is asked for.
        header: gives the header's entries when all tensors are known.

    Raises:
        WriteError: the disk is full, or the folder cannot be written to; an existing file is left unchanged.
    """
    with whole.file(path) as new:
        body = Body(new.with_name("tensors"))
        try:
            for key, tensor in tensors:
                body.add(key, tensor)
            body.fill(new, header(body))
        finally:
            body.close()


def readable(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """Convert tensors of the 8-bit floating-point types, which nothing can be computed in, to float16.

    Every value of these is one of float16's.

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


class Casting:
    """Convert tensors to another dtype, one at a time.

    Args:
        dtype: the new dtype; None keeps each tensor's own. Alphas and whole numbers keep theirs.
    """

    def __init__(self, dtype: torch.dtype | None):
        self.dtype, self._lost, self._total, self._largest = dtype, 0, 0, 0.0

    def of(self, name: str, tensor: Tensor) -> Tensor:
        """The tensor in the new dtype.

        Args:
            name: its key in the file.
            tensor: the tensor, on any device.

        Raises:
            InputError: a value is too large for the dtype, or every value would become zero.
        """
        tensor = tensor.detach().cpu()
        if self.dtype is None or name.endswith(".alpha") or not tensor.is_floating_point():
            return tensor
        made = tensor.to(self.dtype)
        if not made.isfinite().all():
            worst = tensor.abs().max().item()
            raise InputError(f"{name} holds {worst:.3g}, too large for {self.dtype}; choose bfloat16 or float32")
        gone = (made == 0) & (tensor != 0)
        count = int(gone.sum())
        if count and count == int((tensor != 0).sum()):
            raise InputError(
                f"all of {name} is too small for {self.dtype} and would become 0; choose bfloat16 or float32"
            )
        if count:
            self._lost, self._largest = self._lost + count, max(self._largest, tensor[gone].abs().max().item())
        self._total += tensor.numel()
        return made

    @property
    def note(self) -> str:
        """A sentence on values that became zero, "" if there are none."""
        if not self._lost:
            return ""
        name = str(self.dtype).removeprefix("torch.")
        return f"{self._lost} of {self._total} values, up to {self._largest:.2g}, are too small for {name} and became 0"
