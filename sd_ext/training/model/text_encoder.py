"""A text encoder, saved with weight names that every version of Transformers reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from sd_ext.seams.transformers import with_prefix


def save_text_encoder(text_model: Any, new: Path) -> None:
    """Save a text encoder into a folder, with weight names that every version of Transformers reads.

    Transformers 5 saves names without the prefix `text_model.`, which earlier versions need; it is added here.
    """
    text_model.save_pretrained(new)
    weights = load_file(new / "model.safetensors")
    named = {with_prefix(key): value for key, value in weights.items()}
    save_file(named, new / "model.safetensors", metadata={"format": "pt"})
