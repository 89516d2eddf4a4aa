"""AnimateDiff: two frames, made by a U-Net with motion modules between its layers."""

from __future__ import annotations

from typing import Any

import diffusers

from . import components as c
from . import controlnet
from .entry import PROMPT, Entry, entry, share

FAMILY = "AnimateDiff"
SIZE = {"height": 64, "width": 64, "num_frames": 2}


@c.shared
def motion_adapter() -> diffusers.MotionAdapter:
    return diffusers.MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_norm_num_groups=4, motion_num_attention_heads=2
    )


@c.shared
def sparse_controlnet() -> diffusers.SparseControlNetModel:
    own = controlnet.settings(c.unet(), diffusers.SparseControlNetModel)
    motion = {
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
        "motion_num_attention_heads": 2,
        "use_simplified_condition_embedding": True,
        "conditioning_channels": 4,
        "concat_conditioning_mask": True,
    }
    return diffusers.SparseControlNetModel(**{**own, **controlnet.EMBEDDING, **motion})


def frames() -> list[Any]:
    """Two pictures."""
    return [diffusers.image_processor.VaeImageProcessor.numpy_to_pil(c.picture().permute(0, 2, 3, 1).numpy())[0]] * 2


@c.shared
def motion_unet() -> diffusers.UNetMotionModel:
    """The pipelines would make it anew of U-Net and adapter each time."""
    return diffusers.UNetMotionModel.from_unet2d(c.unet(), motion_adapter())


SD = {**c.SD, "unet": motion_unet, "motion_adapter": motion_adapter, "controlnet": controlnet.controlnet}
SDXL = {**c.SDXL, "motion_adapter": motion_adapter, "controlnet": controlnet.controlnet}
VIDEO = {**PROMPT, "video": frames, "strength": 0.6}

ENTRIES: list[Entry] = [
    entry("AnimateDiffPipeline", FAMILY, SD, PROMPT | SIZE),
    entry("AnimateDiffSDXLPipeline", FAMILY, SDXL, PROMPT | SIZE),
    entry("AnimateDiffControlNetPipeline", FAMILY, SD, PROMPT | SIZE | {"conditioning_frames": frames}),
    entry(
        "AnimateDiffSparseControlNetPipeline",
        FAMILY,
        SD,
        PROMPT | SIZE | {"conditioning_frames": frames, "controlnet_frame_indices": [0, 1]},
        parts=lambda: {"controlnet": sparse_controlnet()},
    ),
    entry("AnimateDiffVideoToVideoPipeline", FAMILY, SD, VIDEO, share(0.6)),
    entry("AnimateDiffVideoToVideoControlNetPipeline", FAMILY, SD, VIDEO | {"conditioning_frames": frames}, share(0.6)),
    entry(
        "AnimateDiffPAGPipeline",
        "PAG",
        SD,
        PROMPT | SIZE,
        parts=lambda: {"unet": motion_unet.fresh()},
    ),
]
