"""Blocks for Diffusers' Modular pipelines: Stable Diffusion 1.x and 2.x, and a loop that tells samplers and U-Nets.

    import sd_ext.modular
    from diffusers import ModularPipeline

    pipe = ModularPipeline.from_pretrained("path/to/stable-diffusion-1.5")
    pipe.load_components()
    pipe(prompt="red apple", output="images")[0].save("red-apple.png")

Importing this package makes Diffusers find a pipeline and blocks for "stable-diffusion", for which it has none.

StableDiffusionBlocks                  text to image, image to image, inpainting, ControlNet, IP-Adapter
StableDiffusionXLBlocks                Diffusers' for SDXL, with the loop
DenoiseLoop, InpaintLoop, ...          the loops alone, for blocks of your own; they fit both families
StableDiffusionModularPipeline         the pipeline of the first
save(pipe, folder)                     a folder that Diffusers loads by itself, with `trust_remote_code=True`
"""

from __future__ import annotations

from ..seams.diffusers.modular import let_be_built
from .blocks import StableDiffusionBlocks, StableDiffusionXLBlocks
from .loop import ControlNetLoop, DenoiseLoop, InpaintControlNetLoop, InpaintLoop
from .pipeline import StableDiffusionModularPipeline
from .saving import save
from .text import NAME

__all__ = [
    "ControlNetLoop",
    "DenoiseLoop",
    "InpaintControlNetLoop",
    "InpaintLoop",
    "StableDiffusionBlocks",
    "StableDiffusionModularPipeline",
    "StableDiffusionXLBlocks",
    "save",
]

let_be_built(NAME, StableDiffusionModularPipeline, StableDiffusionBlocks)
