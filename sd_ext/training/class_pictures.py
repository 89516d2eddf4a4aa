"""Prior preservation (Ruiz et al. 2022, arXiv 2208.12242, section 3.3): pictures of the class, by the model itself."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from sd_ext.errors import InputError
from sd_ext.training.configs import LoraConfig
from sd_ext.training.data import Item
from sd_ext.training.data.folders import picture_files
from sd_ext.training.data.items import FileReader
from sd_ext.training.model_files import ModelFiles


def class_items(config: LoraConfig, count: int) -> list[Item]:
    """`count` class pictures, again from the first where there are fewer, with the weight of their loss."""
    if not config.class_data:
        return []
    paths = picture_files(Path(config.class_data))[: config.class_images]
    if not paths:
        raise InputError(f"{config.class_data} holds no class pictures")
    chosen = [paths[i % len(paths)] for i in range(count)]
    return [
        Item(f"class picture {path.name}", FileReader(path), config.class_prompt, weight=config.prior_weight)
        for path in chosen
    ]


def missing(config: LoraConfig) -> int:
    """How many class pictures are still to be made."""
    folder = Path(config.class_data)
    return max(0, config.class_images - (len(picture_files(folder)) if folder.is_dir() else 0))


def make_class_pictures(config: LoraConfig, files: ModelFiles, device: torch.device) -> None:
    """Draw what is missing with the base model; each picture appears whole, and is kept if the run is stopped."""
    count = missing(config)
    if not config.class_data or not count:
        return
    folder = Path(config.class_data)
    folder.mkdir(parents=True, exist_ok=True)
    pipe = load_pipeline(files).to(device)
    side, there = config.resolution[0], config.class_images - count
    numbers = range(there, config.class_images)
    for number in track(numbers, "class pictures", console=Console(stderr=True)):
        generator = torch.Generator().manual_seed(number)
        picture = pipe(
            config.class_prompt, num_inference_steps=config.preview_steps, guidance_scale=config.preview_guidance,
            generator=generator, height=side, width=side,
        ).images[0]  # fmt: skip
        name = hashlib.sha256(picture.tobytes()).hexdigest()[:12]
        partial = folder / f".{number:04d}.partial"
        picture.save(partial, format="PNG")
        partial.rename(folder / f"{number:04d}-{name}.png")


def load_pipeline(files: ModelFiles) -> Any:
    """The base model's pipeline, without safety checker."""
    from sd_ext.training.assemble import make_pipeline
    from sd_ext.training.conditioning import TextTowers

    towers = TextTowers.load(files)
    return make_pipeline(files.load("vae").eval(), files.load("unet").eval(), files.noise(), towers, files.family)
