"""Variants of Stable Diffusion that Diffusers keeps under `deprecated`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import diffusers
import torch
import transformers

from . import components as c
from . import controlnet
from .entry import IMAGE, PROMPT, Broken, Entry, assemble, entry, share, tensor
from .kandinsky import image_list as pillow
from .video import frames, motion_adapter

FAMILY = "Stable Diffusion, older variants"
SIZE = {"height": 64, "width": 64}
MASK = {"mask_image": c.mask}


def variant(name: str, module: str = "stable_diffusion_variants") -> Callable[[], type]:
    """A class that Diffusers keeps without exporting it."""
    return lambda: getattr(importlib.import_module(f"diffusers.pipelines.deprecated.{module}"), name)


def twice(steps: int) -> int:
    return 2 * steps


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def own_unet(**changes: Any) -> dict[str, Any]:
    """For pipelines that leave attention processors behind."""
    return {"unet": c.unet.fresh(**changes)}


# ---- pipelines of several calls --------------------------------------------------------------------------------------


def inverse_scheduler() -> diffusers.DDIMInverseScheduler:
    return diffusers.DDIMInverseScheduler.from_config(c.scheduler().config)


def edit_by_difference(pipe: Any, steps: int, seed: int) -> torch.Tensor:
    """DiffEdit's last call; the mask and the inverted picture are what its first two would give."""
    mask = c.mask()[:, 0, ::8, ::8]
    latents = c.embedding(1, steps, 4, 8, 8)
    common = {"num_inference_steps": steps, "inpaint_strength": 1.0, "output_type": "latent"}
    return tensor(pipe("a b", mask, latents, **common, generator=generator(seed), return_dict=False))


def mask_by_difference(pipe: Any, steps: int, seed: int) -> torch.Tensor:
    """DiffEdit's first call, which runs the network once, at a noise level of the scheduler's."""
    common = {"num_inference_steps": steps, "num_maps_per_mask": 1, "generator": generator(seed)}
    return tensor(pipe.generate_mask(pillow(), target_prompt="a", source_prompt="b", **common))


def edit_along_directions(pipe: Any, steps: int, seed: int) -> torch.Tensor:
    """pix2pix-zero: a run that remembers attention, and a second that is guided to keep it."""
    direction = c.embedding(1, c.WORDS, c.WIDTH)
    common = {"num_inference_steps": steps, "output_type": "latent", "generator": generator(seed)}
    return tensor(pipe("a b", source_embeds=direction, target_embeds=-direction, **SIZE, **common, return_dict=False))


# ---- parts -----------------------------------------------------------------------------------------------------------


@c.shared
def image_projection() -> Any:
    from diffusers.pipelines.stable_diffusion.clip_image_project_model import CLIPImageProjection

    return CLIPImageProjection(hidden_size=c.WIDTH)


def gligen(kind: str) -> dict[str, Any]:
    return {
        "unet": c.unet.fresh(attention_type=kind),
        "image_encoder": c.image_encoder(),
        "image_project": image_projection(),
        "processor": transformers.CLIPProcessor(c.feature_extractor(), c.tokenizer()),
    }


BOXES = {"gligen_phrases": ["a"], "gligen_boxes": [[0.1, 0.1, 0.6, 0.6]]}


@c.shared
def example_encoder() -> Any:
    module = importlib.import_module("diffusers.pipelines.deprecated.paint_by_example.image_encoder")
    return module.PaintByExampleImageEncoder(c.clip_vision_config())


@c.shared
def motion_unet_with_picture() -> diffusers.UNetMotionModel:
    return diffusers.UNetMotionModel.from_unet2d(c.unet(in_channels=9), motion_adapter())


@c.shared
def unet_3d() -> diffusers.UNet3DConditionModel:
    own = controlnet.settings(c.unet(), diffusers.UNet3DConditionModel)
    blocks = {
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    }
    return diffusers.UNet3DConditionModel(**{**own, **blocks})


EMBEDS = {
    "prompt": None,
    "prompt_embeds": lambda: c.embedding(1, c.WORDS, c.WIDTH),
    "negative_prompt_embeds": lambda: -c.embedding(1, c.WORDS, c.WIDTH),
}
"""What a text encoder would say that does not matter here."""

ENTRIES: list[Entry | Broken] = [
    entry(
        "StableDiffusionInpaintPipelineLegacy",
        FAMILY,
        c.SD,
        IMAGE | MASK | {"strength": 0.6},
        share(0.6),
        cls=variant("StableDiffusionInpaintPipelineLegacy"),
    ),
    entry(
        "StableDiffusionModelEditingPipeline",
        FAMILY,
        c.SD,
        PROMPT | SIZE,
        parts=own_unet,
        cls=variant("StableDiffusionModelEditingPipeline"),
    ),
    entry(
        "StableDiffusionParadigmsPipeline",
        FAMILY,
        c.SD,
        PROMPT | SIZE | {"parallel": 2, "tolerance": 0.0},
        parts=lambda: {"scheduler": diffusers.DDIMParallelScheduler.from_config(c.scheduler().config)},
        cls=variant("StableDiffusionParadigmsPipeline"),
        refused="steps many timesteps at once with `batch_step_no_noise`, which DDIMParallelScheduler and "
        "DDPMParallelScheduler alone have",
    ),
    entry(
        "CycleDiffusionPipeline",
        FAMILY,
        c.SD,
        IMAGE | {"source_prompt": "b a", "strength": 0.6},
        share(0.6),
        parts=lambda: {"scheduler": diffusers.DDIMScheduler.from_config(c.scheduler().config, set_alpha_to_one=False)},
        cls=variant("CycleDiffusionPipeline"),
        refused="computes its noise from DDIMScheduler's private `_get_variance` and `final_alpha_cumprod`",
    ),
    Entry(
        "StableDiffusionPix2PixZeroPipeline",
        FAMILY,
        lambda: assemble(
            variant("StableDiffusionPix2PixZeroPipeline")(), c.SD, inverse_scheduler=inverse_scheduler(), **own_unet()
        ),
        edit_along_directions,
        lambda steps: 3 * steps,
    ),
    Entry(
        "StableDiffusionDiffEditPipeline (mask)",
        FAMILY,
        lambda: assemble("StableDiffusionDiffEditPipeline", c.SD, inverse_scheduler=inverse_scheduler()),
        mask_by_difference,
        lambda steps: 1,
    ),
    Entry(
        "StableDiffusionDiffEditPipeline (edit)",
        FAMILY,
        lambda: assemble("StableDiffusionDiffEditPipeline", c.SD, inverse_scheduler=inverse_scheduler()),
        edit_by_difference,
        lambda steps: steps,
    ),
    entry("StableDiffusionSAGPipeline", FAMILY, c.SD, PROMPT | SIZE, twice, own_unet),
    entry(  # two views of 64 x 8 latents, each of which steps from a scheduler's state of its own
        "StableDiffusionPanoramaPipeline", FAMILY, c.SD, PROMPT | {"height": 64, "width": 576}, twice
    ),
    entry("StableDiffusionGLIGENPipeline", FAMILY, c.SD, PROMPT | SIZE | BOXES, parts=lambda: gligen("gated")),
    entry(
        "StableDiffusionGLIGENTextImagePipeline",
        FAMILY,
        c.SD,
        PROMPT | SIZE | BOXES | {"gligen_images": lambda: [pillow()]},
        twice,
        parts=lambda: gligen("gated-text-image"),
    ),
    entry(
        "StableDiffusionLDM3DPipeline",
        FAMILY,
        c.SD,
        PROMPT | SIZE | {"output_type": "np"},
        parts=lambda: {"vae": c.autoencoder(in_channels=6, out_channels=6)},
    ),
    entry(
        "StableDiffusionAttendAndExcitePipeline",
        FAMILY,
        c.SD,
        PROMPT | SIZE | {"token_indices": [1], "max_iter_to_alter": 1, "thresholds": {}, "attn_res": (8, 8)},
        twice,
        own_unet,
    ),
    entry("SemanticStableDiffusionPipeline", FAMILY, c.SD, PROMPT | SIZE | {"editing_prompt": ["a"]}),
    entry("StableDiffusionPipelineSafe", FAMILY, c.SD, PROMPT | SIZE),
    entry("AltDiffusionPipeline", FAMILY, c.SD, PROMPT | EMBEDS | SIZE),
    entry("AltDiffusionImg2ImgPipeline", FAMILY, c.SD, IMAGE | EMBEDS | {"strength": 0.6}, share(0.6)),
    entry(
        "PaintByExamplePipeline",
        FAMILY,
        c.SD,
        {
            "image": lambda: 2 * c.picture() - 1,
            "mask_image": c.mask,
            "example_image": c.picture,
            "output_type": "latent",
        },
        parts=lambda: {"unet": c.unet(in_channels=9), "image_encoder": example_encoder()},
    ),
    entry(
        "TextToVideoSDPipeline",
        "Video, older",
        c.SD,
        PROMPT | SIZE | {"num_frames": 2},
        parts=lambda: {"unet": unet_3d()},
    ),
    entry(
        "VideoToVideoSDPipeline",
        "Video, older",
        c.SD,
        PROMPT | {"video": frames, "strength": 0.6},
        share(0.6),
        parts=lambda: {"unet": unet_3d()},
    ),
    entry(
        "TextToVideoZeroPipeline",
        "Video, older",
        c.SD,
        PROMPT | SIZE | {"video_length": 2, "t0": 2, "t1": 3},
        lambda steps: steps + 1,
        own_unet,
    ),
    entry(
        "TextToVideoZeroSDXLPipeline",
        "Video, older",
        c.SDXL,
        PROMPT | SIZE | {"video_length": 2, "t0": 2, "t1": 3},
        lambda steps: steps + 1,
        lambda: own_unet(**c.XL),
    ),
    entry(
        "PIAPipeline",
        "Video, older",
        c.SD,
        PROMPT | SIZE | {"image": pillow, "num_frames": 2},
        parts=lambda: {"unet": motion_unet_with_picture(), "motion_adapter": motion_adapter()},
    ),
]
