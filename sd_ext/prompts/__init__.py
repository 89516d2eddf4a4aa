"""Prompts in AUTOMATIC1111's sense: weighted words, prompts of any length, clip skip, and words learned elsewhere.

    encode_prompt(pipe, "a (red:1.3) apple", "blurry")     arguments for the pipeline's call
    with use_embedding(pipe, "style.safetensors"): ...     a word of a textual inversion file

parser    the grammar: brackets, weights, BREAK       words     words whose vectors come from files
chunks    tokens cut into pieces for the encoder      encode    pieces to what the U-Net is given

The grammar is described in docs/prompts.md. Names are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {"Run": "parser", "encode_prompt": "encode", "parse": "parser", "use_embedding": "words"}

__all__ = ["Run", "encode_prompt", "parse", "use_embedding"]

if TYPE_CHECKING:
    from .encode import encode_prompt
    from .parser import Run, parse
    from .words import use_embedding


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'sd_ext.prompts' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
