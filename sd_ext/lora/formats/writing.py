"""Writing a LoRA in either format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ...errors import InputError, UnknownNameError
from ..lora import Lora
from . import diffusers, kohya
from .files import MODEL_HASH, cast, write_tensors

FORMATS = "diffusers", "kohya"


def save_lora(
    lora: Lora,
    path: str | Path,
    format: str = "diffusers",
    *,
    dtype: torch.dtype | None = None,
    base: str | None = None,
    metadata: Mapping[str, str] | None = None,
    keep_alphas: bool = False,
) -> str:
    """Write a .safetensors file that appears whole or not at all, in place of one that is there.

    Args:
        lora: what to write.
        path: the file; missing folders are made.
        format: "diffusers", which keeps all strengths in its header; or "kohya", which A1111, ComfyUI and Diffusers
            read.
        dtype: the type of the factors; None keeps them as they are.
        base: "sd15", "sd21" or "sdxl"; None is the LoRA's own, or what its modules tell.
        metadata: entries of the header, over those of `lora.metadata`.
        keep_alphas: kohya only: write mixed alphas as they are. Diffusers would read them wrongly, so that otherwise
            each part gets one alpha (`with_one_alpha`).

    Returns:
        A sentence on values that became 0 in `dtype`; "" where none did.

    Raises:
        InputError: the format cannot hold it, a value does not fit `dtype`, or the base cannot be told.
        UnknownNameError: there is no such format or base.
        WriteError: the file cannot be written; what was there is as it was.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: LoRAs are written as .safetensors only")
    lora = replace(lora, metadata={**lora.metadata, **(metadata or {})}, base=base or lora.base)
    if format == "kohya":
        lora = lora if keep_alphas else kohya.with_one_alpha(lora)
        tensors, note = cast(kohya.tensors_of(lora), dtype)
        header = kohya.header_of(lora, tensors, path.stem, metadata or {})
    elif format == "diffusers":
        tensors, note = cast(diffusers.tensors_of(lora), dtype)
        header = {**diffusers.header_of(lora), MODEL_HASH: kohya.hashes(tensors, {})[0]}
    else:
        raise UnknownNameError("LoRA format", format, FORMATS)
    write_tensors(path, tensors, header)
    return note
