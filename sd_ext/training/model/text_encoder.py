"""A text encoder, saved with weight names that every version of Transformers reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from sd_ext.seams.transformers import with_prefix


def save_text_encoder(text_model: Any, new: Path) -> None:
    """Fill a new folder with the weight names every version of Transformers reads: 5 alone omits `text_model.`."""
    text_model.save_pretrained(new)
    weights = load_file(new / "model.safetensors")
    named = {with_prefix(key): value for key, value in weights.items()}
    save_file(named, new / "model.safetensors", metadata={"format": "pt"})
