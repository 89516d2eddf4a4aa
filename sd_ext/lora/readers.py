"""Which programs read a LoRA file, and what each makes of it.

These are facts of AUTOMATIC1111 1.10, ComfyUI and Diffusers 0.42.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .lora import Lora

FLAT = "lora_", "lycoris_"  # how keys of kohya's and LyCORIS's files begin


class Reader(NamedTuple):
    """A program, and how it reads the file: "yes", or what it leaves out or refuses."""

    program: str
    how: str


def readers_of(lora: Lora, keys: Iterable[str]) -> tuple[Reader, ...]:
    """What reads a file.

    Args:
        lora: what is in it.
        keys: the names of its tensors.
    """
    flat = any(key.startswith(FLAT) for key in keys)
    dora = any("dora" in adapter.tensors for adapter in lora)
    return (
        Reader("A1111", _a1111(flat)),
        Reader("ComfyUI", _comfyui(lora, flat, dora)),
        Reader("Diffusers", _diffusers(lora, flat, dora)),
    )


def _a1111(flat: bool) -> str:
    return "yes" if flat else "no; `sd-ext convert lora IN OUT --to kohya` makes a file that it reads"


def _comfyui(lora: Lora, flat: bool, dora: bool) -> str:
    if dora:
        return "otherwise than it was trained: DoRA is divided by the norm of the base's weight alone; see docs/lora.md"
    if not flat and any(adapter.scale != 1 for adapter in lora):
        return "at another strength: it does not look for alphas in the header; convert it to kohya's format"
    return "yes"


def _diffusers(lora: Lora, flat: bool, dora: bool) -> str:
    others = sorted({adapter.rules.name for adapter in lora if not adapter.rules.in_diffusers})
    if others:
        return f"no, since it does not know {', '.join(others)}; sd_ext.use_lora does"
    if not flat:
        return "yes"
    if dora:
        return "without DoRA's vectors, which it drops; convert it with --to diffusers"
    mixed = [p for p in lora.parts if len({adapter.alpha for adapter in lora.of_part(p).values()}) > 1]
    if mixed:
        return f"with wrong strengths in {', '.join(mixed)}, whose alphas differ; convert it"
    return "yes"
