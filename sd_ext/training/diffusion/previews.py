"""Draws previews with a model in training, through the Diffusers pipeline of its family, from encoded prompts."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sd_ext.training.data.images import is_whole_png, to_uint8
from sd_ext.training.diffusion.settings import Shot

log = logging.getLogger(__name__)


def draw(pipe: Any, prompt: dict[str, Tensor], negative: dict[str, Tensor], shot: Shot) -> np.ndarray:
    """Draw one picture. The initial noise is drawn in float32 on the CPU, so it is the same on every device.

    Args:
        pipe: a pipeline from `make_pipeline`.
        prompt: the encoded prompt: "states" (1, n, d) and for SDXL "pooled" (1, p), on the pipeline's device.
        negative: the encoded negative prompt, likewise.
        shot: seed, size, guidance scale and number of steps.

    Returns:
        (height, width, 3) uint8.
    """
    dtype = pipe.unet.dtype
    states: dict[str, Any] = {
        "prompt_embeds": prompt["states"].to(dtype), "negative_prompt_embeds": negative["states"].to(dtype)
    }  # fmt: skip
    if "pooled" in prompt:
        states |= {
            "pooled_prompt_embeds": prompt["pooled"].to(dtype),
            "negative_pooled_prompt_embeds": negative["pooled"].to(dtype),
        }
    latents = pipe(
        **states, num_inference_steps=shot.steps, guidance_scale=shot.guidance,
        generator=torch.Generator().manual_seed(shot.seed), height=shot.height, width=shot.width, output_type="latent",
    ).images  # fmt: skip
    vae = pipe.vae
    latents = latents.to(vae.device, torch.float32) / vae.config.scaling_factor
    with torch.autocast(latents.device.type, enabled=False):  # in float32: in float16 SDXL's autoencoder overflows
        return to_uint8(vae.decode(latents).sample)[0]


def read_whole_pictures(folder: Path, count: int) -> list[Image.Image] | None:
    """Read PNG pictures that were drawn before.

    Args:
        folder: the folder with the pictures.
        count: how many pictures it must hold.

    Returns:
        The pictures, sorted by file name; None if the folder does not exist, or, with a warning, if a picture is
        damaged or the number is wrong.
    """
    if not folder.is_dir():
        return None
    paths = sorted(folder.glob("*.png"))
    damaged = [path for path in paths if not is_whole_png(path)]
    if damaged or len(paths) != count:
        log.warning("%s is damaged, and its pictures are drawn anew", damaged[0] if damaged else folder)
        return None
    return [Image.open(path).copy() for path in paths]
