"""The loop over the steps: it tells U-Nets and samplers what the pipeline does, and keeps its runs apart from others.

Diffusers' loop asks a guider for a mixture and hands the sampler that alone. Here, while the loop runs,

- both predictions stand on `board`, where samplers of two fields and guidance schedules find them;
- the U-Net is told step, number of steps, strength of guidance, and which half it is called for;
- the U-Net's cache is in a context of this pipeline, so that pipelines may take turns with one U-Net.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from ..errors import InputError
from ..seams.diffusers.modular import sdxl_blocks
from ..seams.torch import uncompiled
from ..unets import sampling
from .saving import Saved

SDXL = sdxl_blocks()


class ToldLoop:
    """Mixin before a loop of Diffusers; see the top of this file."""

    def __call__(self, components: Any, state: Any) -> Any:
        """Run the loop. For arguments and results see Diffusers' `ModularPipelineBlocks`."""
        network = uncompiled(components.unet)
        _check_channels(network, components.num_channels_latents, state)
        context = getattr(network, "cache_context", None)
        with sampling(components), context(f"modular pipeline {id(components)}") if context else nullcontext():
            return super().__call__(components, state)  # type: ignore[misc]


def _check_channels(network: Any, latents: int, state: Any) -> None:
    """Raise `InputError` where the U-Net takes other channels than this loop gives it."""
    takes, inpaints = network.config.in_channels, state.get("mask") is not None
    if takes == latents or (takes == 2 * latents + 1 and inpaints):
        return
    if takes == 2 * latents + 1:
        raise InputError("this U-Net is for inpainting: give the pipeline an image and a mask_image")
    raise InputError(
        f"this U-Net takes {takes} channels, and these blocks give {latents}: they are for text and images"
    )


class DenoiseLoop(Saved, ToldLoop, SDXL.DenoiseStep):
    """The loop of text-to-image and image-to-image."""


class InpaintLoop(Saved, ToldLoop, SDXL.InpaintDenoiseStep):
    """The loop of inpainting."""


class ControlNetLoop(Saved, ToldLoop, SDXL.ControlNetDenoiseStep):
    """The loop with ControlNet."""


class InpaintControlNetLoop(Saved, ToldLoop, SDXL.InpaintControlNetDenoiseStep):
    """The loop of inpainting with ControlNet."""
