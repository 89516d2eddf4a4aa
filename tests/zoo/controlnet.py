"""ControlNet, ControlNet-XS and T2I-Adapter."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers

from . import components as c
from .entry import IMAGE, PROMPT, Entry, entry, share

FAMILY = "ControlNet"
SIZE = {"height": 64, "width": 64}
INPAINT = {"mask_image": c.mask, "strength": 0.6}
CONTROL = {"control_image": c.picture}
EMBEDDING = {"conditioning_embedding_out_channels": (4, 4, 4, 4)}
"""Takes the control picture down to the latent's size."""


@c.shared
def controlnet() -> diffusers.ControlNetModel:
    return diffusers.ControlNetModel.from_unet(c.unet(), **EMBEDDING)


@c.shared
def controlnet_xl() -> diffusers.ControlNetModel:
    return diffusers.ControlNetModel.from_unet(c.unet_xl(), **EMBEDDING)


def settings(network: diffusers.ModelMixin, cls: type) -> dict[str, Any]:
    """Those of a U-Net's settings that another class has too."""
    names = set(inspect.signature(cls.__init__).parameters)
    return {key: value for key, value in network.config.items() if key in names and key[0] != "_"}


@c.shared
def controlnet_union() -> diffusers.ControlNetUnionModel:
    own = settings(c.unet_xl(), diffusers.ControlNetUnionModel)
    small = {"num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8}
    return diffusers.ControlNetUnionModel(**{**own, **EMBEDDING, **small})


@c.shared
def adapter_xs(**changes: Any) -> diffusers.ControlNetXSAdapter:
    return diffusers.ControlNetXSAdapter.from_unet(
        c.unet(**changes),
        size_ratio=1.0,
        conditioning_embedding_out_channels=EMBEDDING["conditioning_embedding_out_channels"],
    )


@c.shared
def t2i_adapter(kind: str, downscale: int) -> diffusers.T2IAdapter:
    return diffusers.T2IAdapter(
        in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=downscale, adapter_type=kind
    )


def adapter_xl() -> dict[str, Any]:
    """Joins in after the first block of the U-Net, which has no attention in SDXL, and its downsampling."""
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return {"unet": c.unet_xl(**blocks), "adapter": t2i_adapter("full_adapter_xl", 16)}


SD = {**c.SD, "controlnet": controlnet}
SDXL = {**c.SDXL, "controlnet": controlnet_xl}
UNION = {**c.SDXL, "controlnet": controlnet_union}
MODE = {"control_mode": 0}
DEEP = {"layers_per_block": 2}
"""ControlNet-XS takes it for granted."""


def pair(name: str, pool: dict, inpaint: dict, more: dict) -> list[Entry]:
    """The three uses of one kind of ControlNet; `name` has a place for the use."""
    return [
        entry(name.format("Img2Img"), FAMILY, pool, IMAGE | CONTROL | more | {"strength": 0.6}, share(0.6)),
        entry(name.format("Inpaint"), FAMILY, pool, IMAGE | CONTROL | more | inpaint | SIZE, share(0.6)),
    ]


ENTRIES: list[Entry] = [
    entry("StableDiffusionControlNetPipeline", FAMILY, SD, IMAGE),
    *pair("StableDiffusionControlNet{}Pipeline", SD, INPAINT, {}),
    entry("StableDiffusionXLControlNetPipeline", FAMILY, SDXL, IMAGE),
    *pair("StableDiffusionXLControlNet{}Pipeline", SDXL, INPAINT, {}),
    entry("StableDiffusionXLControlNetUnionPipeline", FAMILY, UNION, PROMPT | CONTROL | MODE),
    *pair("StableDiffusionXLControlNetUnion{}Pipeline", UNION, INPAINT, MODE),
    entry(
        "StableDiffusionControlNetXSPipeline",
        FAMILY,
        c.SD,
        IMAGE,
        parts=lambda: {"unet": c.unet(**DEEP), "controlnet": adapter_xs(**DEEP)},
    ),
    entry(
        "StableDiffusionXLControlNetXSPipeline",
        FAMILY,
        c.SDXL,
        IMAGE,
        parts=lambda: {"unet": c.unet_xl(**DEEP), "controlnet": adapter_xs(**c.XL, **DEEP)},
    ),
    entry(
        "StableDiffusionAdapterPipeline",
        "T2I-Adapter",
        c.SD,
        IMAGE | SIZE,
        parts=lambda: {"adapter": t2i_adapter("full_adapter", 8)},
    ),
    entry(
        "StableDiffusionXLAdapterPipeline",
        "T2I-Adapter",
        c.SDXL,
        IMAGE | SIZE,
        parts=adapter_xl,
    ),
]
