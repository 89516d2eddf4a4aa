"""transformers' private parts: where a text encoder's layers are.

Version 4 keeps the layers of `CLIPTextModel` in a submodule `text_model`, and names weights after it; version 5 has no
such submodule, reads both, and writes weights without. Files of both kinds exist and other tools read those of
version 4 only. `text_projection`, of SDXL's second encoder, stands beside it in both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .seam import declare

declare(
    f"{__name__}.with_prefix",
    "text_model",
    seen="transformers 4.41 to 5.23, models.clip.modeling_clip",
    gone="LoRA of text encoders, and text encoders that every version reads",
    fallback="both ways of naming are read",
)

PREFIX = "text_model."
BESIDE = "text_projection"


def with_prefix(path: str) -> str:
    """A text encoder's module or weight as files name it, under `text_model.`, whichever version wrote `path`."""
    return path if path.startswith((PREFIX, BESIDE)) else f"{PREFIX}{path}"


def without_prefix(path: str) -> str:
    """The same as this package names it, without `text_model.`."""
    return path.removeprefix(PREFIX)


def text_tower(clip: Any) -> Any:
    """The text encoder inside a `CLIPModel`."""
    return clip.text_model


def find_module(modules: Mapping[str, Any], path: str) -> Any:
    """A text encoder's module by a path without prefix, in the model's modules by name; KeyError if there is none."""
    return modules[path] if path in modules else modules[f"{PREFIX}{path}"]
