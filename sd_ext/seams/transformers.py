"""transformers' private parts: where a text encoder's layers are.

In version 4, the layers of `CLIPTextModel` are in a submodule `text_model`, and the names of weights begin with it.
Version 5 has no such submodule, reads both kinds of names, and writes names without it. Both kinds of files exist, and
other tools read only those of version 4. `text_projection`, in SDXL's second encoder, is outside `text_model` in both
versions.
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
    """The name of a text encoder's module or weight as files should have it, with `text_model.`.

    Args:
        path: the name as any version has it.
    """
    return path if path.startswith((PREFIX, BESIDE)) else f"{PREFIX}{path}"


def without_prefix(path: str) -> str:
    """The name of a text encoder's module or weight as this package uses it, without `text_model.`."""
    return path.removeprefix(PREFIX)


def text_tower(clip: Any) -> Any:
    """The text encoder inside a `CLIPModel`."""
    return clip.text_model


def find_module(modules: Mapping[str, Any], path: str) -> Any:
    """Find a text encoder's module.

    Args:
        modules: the model's modules by name.
        path: the name without prefix.

    Raises:
        KeyError: there is no such module.
    """
    return modules[path] if path in modules else modules[f"{PREFIX}{path}"]
