"""Write a LoRA in Diffusers' or kohya's format."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ...errors import InputError, UnknownNameError
from ..lora import Lora
from . import diffusers, kohya
from .files import MODEL_HASH, Casting, write_tensors
from .words import write_words

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
    """Write a LoRA as a .safetensors file, completely or not at all; an existing file is replaced.

    Args:
        lora: what to write.
        path: the file; missing folders are made.
        format: "diffusers", with every module's strength in the header, or "kohya", which A1111, ComfyUI and Diffusers
            read.
        dtype: the dtype of the factors; None means `lora.dtype`, or if that is None, each tensor's own.
        base: the base model, "sd15", "sd21", "sdxl" or "sdxl-refiner"; None means the one that the LoRA states or its
            modules imply.
        metadata: header entries, which take precedence over `lora.metadata`.
        keep_alphas: for kohya: keep alphas that differ between modules, which Diffusers would misread. By default each
            part gets one alpha, without changing the effect (`with_one_alpha`).

    Returns:
        Sentences on values that became 0 in `dtype`, and on bundled words, which Diffusers' format has no place for and
        which are written beside the file, in the folder NAME_words; "" if there is nothing to say.

    Raises:
        InputError: the format cannot hold this LoRA, a value does not fit `dtype`, or the base model is not known.
        UnknownNameError: there is no such format or base.
        WriteError: the file cannot be written; an existing one is left unchanged.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: LoRAs are written as .safetensors only")
    dtype = lora.dtype if dtype is None else dtype
    lora = replace(lora, metadata={**lora.metadata, **(metadata or {})}, base=base or lora.base)
    casting, given = Casting(dtype), metadata or {}
    if format == "kohya":
        written = lora if keep_alphas else kohya.with_one_alpha(lora)
        write_tensors(
            path,
            ((key, casting.of(key, tensor)) for key, tensor in kohya.tensors_of(written)),
            lambda body: kohya.header_of(written, body, path.stem, given),
        )
    elif format == "diffusers":
        write_tensors(
            path,
            ((key, casting.of(key, tensor)) for key, tensor in diffusers.tensors_of(lora)),
            lambda body: {**diffusers.header_of(lora), MODEL_HASH: body.hashes({})[0]},
        )
    else:
        raise UnknownNameError("LoRA format", format, FORMATS)
    note = casting.note
    if format == "diffusers" and lora.bundled:
        note = ". ".join(filter(None, [note, write_words(lora.bundled, path, dtype, "Diffusers' format")]))
    return note
