"""Perturbed-attention guidance. It swaps attention processors, so each pipeline has a U-Net of its own."""

from __future__ import annotations

from typing import Any

from . import components as c
from . import controlnet
from .entry import IMAGE, PROMPT, Entry, entry, share
from .sdxl import KOLORS, KOLORS_TEXT, KOLORS_UNET, kolors

FAMILY = "PAG"
SIZE = {"height": 64, "width": 64}
INPAINT = {"mask_image": c.mask, "strength": 0.6}


def own(**changes: Any) -> Any:
    return c.unet.fresh(**changes)


SD = {**controlnet.SD, "unet": own}
SDXL = {**controlnet.SDXL, "unet": lambda: own(**c.XL)}
KOLORS_OWN = {**KOLORS, "unet": lambda: own(**KOLORS_UNET)}

ENTRIES: list[Entry] = [
    entry("StableDiffusionPAGPipeline", FAMILY, SD, PROMPT | SIZE),
    entry("StableDiffusionPAGImg2ImgPipeline", FAMILY, SD, IMAGE | {"strength": 0.6}, share(0.6)),
    entry("StableDiffusionPAGInpaintPipeline", FAMILY, SD, IMAGE | SIZE | INPAINT, share(0.6)),
    entry("StableDiffusionControlNetPAGPipeline", FAMILY, SD, IMAGE),
    entry(
        "StableDiffusionControlNetPAGInpaintPipeline",
        FAMILY,
        SD,
        IMAGE | SIZE | INPAINT | controlnet.CONTROL,
        share(0.6),
    ),
    entry("StableDiffusionXLPAGPipeline", FAMILY, SDXL, PROMPT | SIZE),
    entry("StableDiffusionXLPAGImg2ImgPipeline", FAMILY, SDXL, IMAGE | {"strength": 0.6}, share(0.6)),
    entry("StableDiffusionXLPAGInpaintPipeline", FAMILY, SDXL, IMAGE | SIZE | INPAINT, share(0.6)),
    entry("StableDiffusionXLControlNetPAGPipeline", FAMILY, SDXL, IMAGE),
    entry(
        "StableDiffusionXLControlNetPAGImg2ImgPipeline",
        FAMILY,
        SDXL,
        IMAGE | controlnet.CONTROL | {"strength": 0.6},
        share(0.6),
    ),
    entry("KolorsPAGPipeline", FAMILY, KOLORS_OWN, KOLORS_TEXT | SIZE, cls=lambda: kolors("KolorsPAGPipeline")),
]
