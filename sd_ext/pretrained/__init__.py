"""The embedded model: an ordinary StableDiffusionPipeline folder, trained by this project's own recipe."""

from __future__ import annotations

from pathlib import Path


def pretrained_path() -> Path:
    """The embedded model's folder, for `DiffusionPipeline.from_pretrained`."""
    return Path(__file__).parent / "drawings"
