"""Words bundled in a LoRA's file, where the format has no place for them: a file for each, beside the LoRA's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ...errors import InputError
from .files import Casting, read_tensors, write_tensors

BUNDLED = "bundle_emb."
FORMS = {"string_to_param.*": "emb_params"}  # A1111's name in a bundle -> in a file of its own; others are the same


def write_words(bundled: Mapping[str, Tensor], beside: Path, dtype: torch.dtype | None, what: str) -> str:
    """Write each bundled word as an embedding that A1111, ComfyUI, Diffusers and `sd_ext.use_embedding` read.

    Args:
        bundled: tensors whose keys begin with `bundle_emb.`.
        beside: the LoRA's file, or the model's; the words go to the folder of its name and `_words`, and are called as
            the word is.
        dtype: the dtype to write; None keeps each tensor's own.
        what: what has no place for them, for the sentence.

    Returns:
        A sentence that says what was written where.
    """
    words: dict[str, dict[str, Tensor]] = {}
    for key, tensor in bundled.items():
        word, _, form = key.removeprefix(BUNDLED).partition(".")
        words.setdefault(word, {})[FORMS.get(form, form) or "emb_params"] = tensor
    folder = beside.with_name(f"{beside.stem if beside.suffix == '.safetensors' else beside.name}_words")
    written = []
    for word, tensors in sorted(words.items()):
        casting = Casting(dtype)
        made = {key: casting.of(key, tensor) for key, tensor in tensors.items()}
        file = _free(folder, re.sub(r"[^\w .-]|^[.]", "_", word)[:100] or "_", made)
        write_tensors(file, made.items(), lambda _, word=word: {"word": word})
        written.append(f"{word} in {file}")
    return f"{what} has no place for the words bundled with it; written beside it: {', '.join(written)}"


def _free(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> Path:
    """A file of this name, with a number where others hold something else: they stay as they are."""
    file, number = folder / f"{name}.safetensors", 1
    while file.exists() and not _holds(file, tensors):
        number += 1
        file = folder / f"{name}-{number}.safetensors"
    return file


def _holds(file: Path, tensors: Mapping[str, Tensor]) -> bool:
    try:
        found, _ = read_tensors(file)
    except InputError:
        return False
    return found.keys() == tensors.keys() and all(torch.equal(found[key], each) for key, each in tensors.items())
