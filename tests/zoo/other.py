"""Marigold, LEdits++, latent diffusion and sound."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from . import components as c
from .entry import PROMPT, Entry, assemble, entry, tensor
from .kandinsky import image_list


def invert_and_edit(pipe: Any, steps: int, seed: int) -> torch.Tensor:
    """LEdits++ inverts a picture with the scheduler's steps, then edits it."""
    pipe.invert(image_list(), num_inversion_steps=steps, skip=0.0, generator=torch.Generator().manual_seed(seed))
    edit = {"editing_prompt": ["a"], "use_intersect_mask": False, "output_type": "latent", "return_dict": False}
    return tensor(pipe(**edit, generator=torch.Generator().manual_seed(seed)))


LEDITS = (
    "checks by isinstance for Diffusers' own DDIMScheduler and DPMSolverMultistepScheduler, and steps by their private "
    "attributes"
)


def sde() -> diffusers.DPMSolverMultistepScheduler:
    return diffusers.DPMSolverMultistepScheduler.from_config(
        c.scheduler().config, algorithm_type="sde-dpmsolver++", solver_order=2
    )


MARIGOLD = {"image": c.picture, "processing_resolution": 0, "output_type": "pt", "output_latent": False}

ENTRIES: list[Entry] = [
    entry("MarigoldDepthPipeline", "Marigold", c.SD, MARIGOLD, parts=lambda: {"unet": c.unet(in_channels=8)}),
    entry("MarigoldNormalsPipeline", "Marigold", c.SD, MARIGOLD, parts=lambda: {"unet": c.unet(in_channels=8)}),
    entry(
        "MarigoldIntrinsicsPipeline",
        "Marigold",
        c.SD,
        MARIGOLD,
        parts=lambda: {
            "unet": c.unet(in_channels=12, out_channels=8),
            "target_properties": {
                "target_names": ["albedo", "material"],
                "albedo": {"prediction_space": "srgb", "sub_target_names": []},
                "material": {"prediction_space": "linear", "sub_target_names": []},
            },
        },
    ),
    entry(
        "LDMTextToImagePipeline",
        "Latent diffusion",
        {**c.SD, "bert": c.text_encoder, "vqvae": c.autoencoder},
        PROMPT | {"height": 64, "width": 64, "output_type": "np"},
    ),
    Entry(
        "LEditsPPPipelineStableDiffusion",
        "LEdits++",
        lambda: assemble("LEditsPPPipelineStableDiffusion", c.SD, unet=c.unet.fresh(), scheduler=sde()),
        invert_and_edit,
        lambda steps: 2 * steps,
        refused=LEDITS,
    ),
    Entry(
        "LEditsPPPipelineStableDiffusionXL",
        "LEdits++",
        lambda: assemble("LEditsPPPipelineStableDiffusionXL", c.SDXL, unet=c.unet.fresh(**c.XL), scheduler=sde()),
        invert_and_edit,
        lambda steps: 2 * steps,
        refused=LEDITS,
    ),
]
