"""DeepFloyd IF: diffusion on pixels, with a variance that the network learned and dynamic thresholding."""

from __future__ import annotations

from typing import Any

import diffusers

from . import components as c
from .entry import Entry, entry, share

FAMILY = "DeepFloyd IF"
SIDE = 16
UNET = {
    "sample_size": SIDE,
    "in_channels": 3,
    "out_channels": 6,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "encoder_hid_dim": c.WIDTH,
    "cross_attention_dim": 32,
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2,
    "cross_attention_norm": "group_norm",
    "resnet_time_scale_shift": "scale_shift",
}
TEXT = {
    "prompt_embeds": lambda: c.embedding(1, 8, c.WIDTH),
    "negative_prompt_embeds": lambda: -c.embedding(1, 8, c.WIDTH),
    "output_type": "pt",
}
"""What the T5 encoder would say."""
SIZE = {"height": SIDE, "width": SIDE}


def small() -> Any:
    return c.picture()[..., :SIDE, :SIDE]


def half() -> Any:
    return c.picture()[..., : SIDE // 2, : SIDE // 2]


def small_mask() -> Any:
    """The right half."""
    return c.mask()[..., :SIDE, 32 - SIDE // 2 : 32 + SIDE // 2]


def scheduler() -> diffusers.DDPMScheduler:
    return diffusers.DDPMScheduler(
        beta_schedule="squaredcos_cap_v2",
        thresholding=True,
        dynamic_thresholding_ratio=0.95,
        sample_max_value=1.0,
        variance_type="learned_range",
    )


POOL = {
    "unet": lambda: c.unet(**UNET),
    "scheduler": scheduler,
    "watermarker": lambda: None,
    "image_noising_scheduler": lambda: diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
}


def super_resolution() -> dict[str, Any]:
    """Reads the picture as channels and its noise level as a class."""
    return {"unet": c.unet(**{**UNET, "in_channels": 6, "class_embed_type": "timestep"})}


IMAGE = {"image": small, "strength": 0.6}
FROM_SMALL = {"image": half, "original_image": small, "strength": 0.6}
MASK = {"mask_image": small_mask}

ENTRIES: list[Entry] = [
    entry("IFPipeline", FAMILY, POOL, TEXT | SIZE),
    entry("IFImg2ImgPipeline", FAMILY, POOL, TEXT | IMAGE, share(0.6)),
    entry("IFInpaintingPipeline", FAMILY, POOL, TEXT | IMAGE | MASK, share(0.6)),
    entry("IFSuperResolutionPipeline", FAMILY, POOL, TEXT | SIZE | {"image": half}, parts=super_resolution),
    entry("IFImg2ImgSuperResolutionPipeline", FAMILY, POOL, TEXT | FROM_SMALL, share(0.6), parts=super_resolution),
    entry(
        "IFInpaintingSuperResolutionPipeline",
        FAMILY,
        POOL,
        TEXT | FROM_SMALL | MASK,
        share(0.6),
        parts=super_resolution,
    ),
]
