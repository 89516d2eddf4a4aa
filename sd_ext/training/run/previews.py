"""Pictures by a model in training, drawn through the family's own Diffusers pipeline from states that are at hand."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sd_ext.training.run.progress import contact_sheet, to_uint8
from sd_ext.training.settings import DiffusionConfig

log = logging.getLogger(__name__)


def draw(pipe: Any, prompt: dict[str, Tensor], negative: dict[str, Tensor], seed: int, config: DiffusionConfig) -> Any:
    """One picture, (height, width, 3) uint8, of states (1, n, d) and pooled (1, p); float32 noise on the CPU."""
    dtype = pipe.unet.dtype
    states: dict[str, Any] = {
        "prompt_embeds": prompt["states"].to(dtype), "negative_prompt_embeds": negative["states"].to(dtype)
    }  # fmt: skip
    if "pooled" in prompt:
        states |= {
            "pooled_prompt_embeds": prompt["pooled"].to(dtype),
            "negative_pooled_prompt_embeds": negative["pooled"].to(dtype),
        }
    side = max(1, config.resolution[0] // pipe.vae_scale_factor) * pipe.vae_scale_factor
    latents = pipe(
        **states, num_inference_steps=config.preview_steps, guidance_scale=config.preview_guidance,
        generator=torch.Generator().manual_seed(seed), height=side, width=side, output_type="latent",
    ).images  # fmt: skip
    vae = pipe.vae
    latents = latents.to(vae.device, torch.float32) / vae.config.scaling_factor
    with torch.autocast(latents.device.type, enabled=False):  # in float32: in float16 SDXL's autoencoder overflows
        return to_uint8(vae.decode(latents).sample)[0]


def labelled_sheet(rows: dict[str, list[np.ndarray]], captions: list[str], columns: int = 8) -> Image.Image:
    """Rows of pictures one below the other, each with its name, and above each column its caption."""
    strips = []
    for start in range(0, len(captions), columns):
        shown = captions[start : start + columns]
        pictures = [picture for row in rows.values() for picture in row[start : start + columns]]
        strips.append(_with_labels(contact_sheet(pictures, len(shown)), shown, list(rows)))
    sheet = Image.new("RGB", (max(s.width for s in strips), sum(s.height for s in strips)), "white")
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _with_labels(grid: Image.Image, captions: list[str], names: list[str]) -> Image.Image:
    left, top, font = 44 if any(names) else 0, 16, ImageFont.load_default(11)
    sheet = Image.new("RGB", (grid.width + left, grid.height + top), "white")
    sheet.paste(grid, (left, top))
    pen = ImageDraw.Draw(sheet)
    for number, caption in enumerate(captions):
        width = grid.width / len(captions)
        text = caption
        while text and pen.textlength(text, font) > width - 4:
            text = text[:-1]
        pen.text((left + number * width + 2, 1), text, "black", font)
    for number, name in enumerate(names):
        pen.text((2, top + (number + 0.5) * grid.height / len(names) - 6), name, "black", font)
    return sheet


def is_whole_png(path: Path) -> bool:
    """Whether a PNG file is undamaged: the checksum of each of its chunks is right."""
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.verify()
    except Exception:  # Pillow has no common type for what can be wrong with a file
        return False
    return True


def read_whole_pictures(folder: Path, count: int) -> list[np.ndarray] | None:
    """The `count` pictures of a folder; None if there is none, or, which is said, if it is damaged."""
    if not folder.is_dir():
        return None
    paths = sorted(folder.glob("*.png"))
    damaged = [path for path in paths if not is_whole_png(path)]
    if damaged or len(paths) != count:
        log.warning("%s is damaged, and its pictures are drawn anew", damaged[0] if damaged else folder)
        return None
    return [np.asarray(Image.open(path)) for path in paths]
