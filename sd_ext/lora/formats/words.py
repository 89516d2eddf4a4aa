"""Words bundled in a LoRA's file, where the format has no place for them: a file for each, beside the LoRA's."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from .files import Casting, write_tensors

BUNDLED = "bundle_emb."
FORMS = {"string_to_param.*": "emb_params"}  # A1111's name in a bundle -> in a file of its own; others are the same


def write_words(bundled: Mapping[str, Tensor], lora: Path, dtype: torch.dtype | None) -> str:
    """Write each bundled word as an embedding that A1111, ComfyUI, Diffusers and `sd_ext.use_embedding` read.

    Args:
        bundled: tensors whose keys begin with `bundle_emb.`.
        lora: the LoRA's file; the words go to the folder of its name and `_words`, and are called as the word is.
        dtype: the dtype to write; None keeps each tensor's own.

    Returns:
        A sentence that says what was written where.
    """
    words: dict[str, dict[str, Tensor]] = {}
    for key, tensor in bundled.items():
        word, _, form = key.removeprefix(BUNDLED).partition(".")
        words.setdefault(word, {})[FORMS.get(form, form) or "emb_params"] = tensor
    folder = lora.with_name(f"{lora.stem}_words")
    written = []
    for word, tensors in sorted(words.items()):
        name = re.sub(r"[^\w .-]|^[.]", "_", word)[:100] or "_"
        file = folder / f"{name}.safetensors"
        casting = Casting(dtype)
        made = {key: casting.of(key, tensor) for key, tensor in tensors.items()}
        write_tensors(file, made.items(), lambda _, word=word: {"word": word})
        written.append(f"{word} in {file}")
    return f"Diffusers' format has no place for the words bundled with it; written beside it: {', '.join(written)}"
