"""Every Diffusers pipeline on a UNet2DConditionModel or its kin, in tiny, for tests and for the compatibility table."""

from __future__ import annotations

from . import (
    audio,
    controlnet,
    deepfloyd,
    kandinsky,
    missing,
    older,
    other,
    pag,
    sdxl,
    stable_diffusion,
    unclip,
    video,
)
from .entry import Broken, Entry

_ALL = [
    one
    for module in (
        stable_diffusion,
        sdxl,
        controlnet,
        pag,
        video,
        kandinsky,
        deepfloyd,
        other,
        audio,
        unclip,
        older,
        missing,
    )
    for one in module.ENTRIES
]
ZOO: dict[str, Entry] = {one.name: one for one in _ALL if isinstance(one, Entry)}
BROKEN: dict[str, Broken] = {one.name: one for one in _ALL if isinstance(one, Broken)}
