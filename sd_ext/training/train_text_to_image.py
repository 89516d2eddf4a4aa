"""Train the U-Net of a latent diffusion model on captioned pictures; autoencoder and text encoder stay as they are.

    accelerate launch training/train_text_to_image.py --data PICTURES --autoencoder VAE --text-encoder CLIP --out RUN

Each pass draws a timestep, noise and a sample of the latent's posterior for every picture, replaces some captions by
the empty one (classifier-free guidance, Ho & Salimans 2022, arXiv 2207.12598) and takes the squared error of the
prediction (Ho et al. 2020, arXiv 2006.11239, eq. 14). The result is a whole pipeline folder.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from sd_ext.errors import InputError
from sd_ext.training.diffusion import DiffusionTask
from sd_ext.training.model.files import ModelFiles, find_model, find_part
from sd_ext.training.model.pipeline import fill_pipeline, make_pipeline, noise_settings
from sd_ext.training.model.text_encoders import TextTowers
from sd_ext.training.objective.loss import DiffusionLoss
from sd_ext.training.run.fit import fit
from sd_ext.training.run.previews import labelled_sheet
from sd_ext.training.settings import TextToImageConfig
from sd_ext.training.settings.command import main


def build(config: TextToImageConfig, latent_channels: int, latent_size: int, text_width: int) -> Any:
    """A new U-Net as the settings say, its weights a function of the seed."""
    torch.manual_seed(config.seed)
    down = ["CrossAttnDownBlock2D" if level else "DownBlock2D" for level in config.attention]
    up = ["CrossAttnUpBlock2D" if level else "UpBlock2D" for level in reversed(config.attention)]
    from diffusers import UNet2DConditionModel

    unet: Any = UNet2DConditionModel  # its annotations say tuples of one
    return unet(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=config.channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_groups,
        cross_attention_dim=text_width,
        # Diffusers' name is wrong for historical reasons: this is the number of heads.
        attention_head_dim=tuple(max(1, channels // config.head_dim) for channels in config.channels),
    )


def find_files(config: TextToImageConfig) -> ModelFiles:
    """The parts of `model`, with those that are given by themselves in their place.

    Raises:
        InputError: there is no autoencoder or no text encoder.
    """
    if not (config.autoencoder or config.model) or not (config.text_encoder or config.model):
        raise InputError("give --autoencoder and --text-encoder, or --model with a pipeline that has both")
    whole = find_model(config.model, config.variant).parts if config.model else {}
    own = {}
    if config.autoencoder:
        own["vae"] = find_part(config.autoencoder, "vae")
    if config.text_encoder:
        own |= {part: find_part(config.text_encoder, part) for part in ("text_encoder", "tokenizer")}
    return ModelFiles({**whole, **own}, config.variant, config.model)


class TextToImageTask(DiffusionTask):
    """The whole U-Net is trained, a new one or that of `model`."""

    name = "text to image"
    config: TextToImageConfig

    def __init__(self, config: TextToImageConfig):
        super().__init__(config, find_files(config))

    def noise_settings(self) -> dict[str, Any]:
        return super().noise_settings() if "scheduler" in self.files.parts else noise_settings(self.config)

    def make_model(self) -> DiffusionLoss:
        config, text = self.config, self.encoded.text_width
        side = config.resolution[0] // self.scale
        unet = self.files.load("unet") if "unet" in self.files.parts else build(config, self.channels, side, text)
        if unet.config.cross_attention_dim != text or unet.config.in_channels != self.channels:
            raise InputError(
                f"the U-Net takes {unet.config.in_channels} latent channels and "
                f"{unet.config.cross_attention_dim} text features, the encoders give {self.channels} and {text}"
            )
        return DiffusionLoss(unet, config.loss)

    def preview(self) -> Image.Image:
        """One picture for each preview caption, the same noise every time."""
        pipe = make_pipeline(self.encoded.vae(), self.unet, self.noise, None, self.files.family)
        return labelled_sheet({"": self.draw_prompts(pipe)}, self.prompts)

    def export(self, new: Path, history: list[dict[str, float]]) -> None:
        """Save the whole pipeline."""
        towers, vae = TextTowers.load(self.files), self.encoded.vae().cpu()
        fill_pipeline(make_pipeline(vae, self.unet, self.noise, towers, self.files.family), new)


def run(config: TextToImageConfig) -> Path:
    """Train, or resume; returns the folder of the pipeline."""
    task = TextToImageTask(config)
    return fit(task, task.config)


if __name__ == "__main__":
    sys.exit(main(TextToImageConfig, "sd_ext.training.train_text_to_image:run", __doc__))
