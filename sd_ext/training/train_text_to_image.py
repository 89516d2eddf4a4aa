"""Train the U-Net of a latent diffusion model on captioned pictures, and its text encoders if wanted.

    accelerate launch training/train_text_to_image.py --data PICTURES --autoencoder VAE --text-encoder CLIP --out RUN

Each pass draws a timestep, noise and a sample of the latent's posterior for every picture, replaces some captions by
the empty one (classifier-free guidance, Ho & Salimans 2022, arXiv 2207.12598) and takes the squared error of the
prediction (Ho et al. 2020, arXiv 2006.11239, eq. 14). The result is a whole pipeline folder.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from sd_ext.errors import InputError
from sd_ext.models import Mixed, Model, find_model, find_part
from sd_ext.models.to_file import family_of, write_file
from sd_ext.sheets import labelled_sheet
from sd_ext.training.configs import NewUnetSettings, TextToImageConfig
from sd_ext.training.diffusion.samples import check_before_hub
from sd_ext.training.full import FullTask, check_fits
from sd_ext.training.lora.network import DTYPES, towers_on_meta
from sd_ext.training.model.pipeline import fill_pipeline, make_pipeline
from sd_ext.training.model.text_encoders import TextTowers
from sd_ext.training.model.trainable import find_trainable
from sd_ext.training.objective.loss import DiffusionLoss
from sd_ext.training.objective.settings import PredictionSettings
from sd_ext.training.run.by_weight import WeightByWeight
from sd_ext.training.run.fit import fit
from sd_ext.training.settings.command import main

FILE = "model.safetensors"  # the result as one file
PARTS = "parts"  # the folder that becomes the file


def build(settings: NewUnetSettings, seed: int, latent_channels: int, latent_size: int, text_width: int) -> Any:
    """Make a new U-Net.

    Args:
        settings: its channels, attention and layers.
        seed: seed of its random weights.
        latent_channels: channels of a latent.
        latent_size: height and width of the latents it is meant for, in latent pixels.
        text_width: features of the text states.
    """
    torch.manual_seed(seed)
    down = ["CrossAttnDownBlock2D" if level else "DownBlock2D" for level in settings.attention]
    up = ["CrossAttnUpBlock2D" if level else "UpBlock2D" for level in reversed(settings.attention)]
    from diffusers import UNet2DConditionModel

    unet: Any = UNet2DConditionModel  # Any, since Diffusers annotates its tuples wrongly
    return unet(
        sample_size=latent_size,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=settings.channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        layers_per_block=settings.layers_per_block,
        norm_num_groups=settings.norm_groups,
        cross_attention_dim=text_width,
        # Diffusers' name is wrong for historical reasons: this is the number of heads.
        attention_head_dim=tuple(max(1, channels // settings.head_dim) for channels in settings.channels),
        # "text": attention pooling of the text states is added to the embedding of the time (Saharia et al. 2022, arXiv
        # 2205.11487, section 2.3). Diffusers takes the states of the cross-attention: pipelines run it as it is.
        addition_embed_type="text" if settings.text_with_time else None,
        addition_embed_type_num_heads=max(1, text_width // settings.head_dim),
        resnet_time_scale_shift="scale_shift" if settings.scale_shift else "default",
    )


def find_files(config: TextToImageConfig) -> Mixed:
    """Find the parts of the pipeline to train: those of the setting `model`, replaced by parts given separately.

    Raises:
        InputError: there is no autoencoder or no text encoder.
        ModelError: a model cannot be trained or is incomplete.
    """
    base, given = config.base, config.parts
    if not (given.autoencoder or base.model) or not (given.text_encoder or base.model):
        raise InputError("give --autoencoder and --text-encoder, or --model with a pipeline that has both")
    whole = find_trainable(base.model, base.variant, base.revision) if base.model else None
    owners: dict[str, Model] = dict.fromkeys(whole.parts, whole) if whole else {}
    if given.autoencoder:
        owners["vae"] = find_part(given.autoencoder, "vae", base.variant)
    if given.text_encoder:
        for part in ("text_encoder", "tokenizer"):
            owners[part] = find_part(given.text_encoder, part, base.variant)
    return Mixed(base.model, owners, whole.index if whole else {})


def new_schedule(settings: NewUnetSettings, prediction: PredictionSettings) -> dict[str, Any]:
    """The noise schedule of a new model, as keyword arguments of Diffusers' schedulers."""
    return {
        "num_train_timesteps": 1000,
        "beta_start": settings.beta_start,
        "beta_end": settings.beta_end,
        "beta_schedule": settings.beta_schedule,
        "prediction_type": "epsilon" if prediction.prediction_type == "auto" else prediction.prediction_type,
        "rescale_betas_zero_snr": prediction.zero_snr,
    }


class TextToImageTask(FullTask):
    """Trains all weights of a U-Net: a new one, or that of the setting `model`."""

    name = "text to image"
    config: TextToImageConfig

    def __init__(self, config: TextToImageConfig):
        check_before_hub(config)
        super().__init__(config, find_files(config), config.phrases.rephrase)
        full, rate = config.full, config.rate.learning_rate
        self.towers: TextTowers | None = None
        if full.train_text:
            self.ratios = {"towers": (full.text_rate or rate) / rate}
        if full.save_as == "file":
            family_of(self.files)  # raises where such a file has no place for it

    def noise_settings(self) -> dict[str, Any]:
        """The base model's noise schedule; without a base model, that of the settings."""
        if "scheduler" in self.files.parts:
            return super().noise_settings()
        return new_schedule(self.config.network, self.config.prediction)

    def make_model(self) -> DiffusionLoss:
        """Load the U-Net, or make a new one.

        Raises:
            InputError: the U-Net does not fit the autoencoder or the text encoder.
        """
        config, text = self.config, text_width(self.files)
        side, seed = config.pictures.resolution[0] // self.scale, config.loop.seed
        known = "unet" in self.files.parts
        unet = self.files.load("unet") if known else build(config.network, seed, self.channels, side, text)
        if unet.config.cross_attention_dim != text or unet.config.in_channels != self.channels:
            raise InputError(
                f"the U-Net takes {unet.config.in_channels} latent channels and "
                f"{unet.config.cross_attention_dim} text features, the encoders give {self.channels} and {text}"
            )
        dtype = DTYPES[config.full.weights]
        if config.full.train_text:
            self.towers = TextTowers.load(self.files, clip_skip=config.captions.clip_skip).to(self.device)
            self.towers.requires_grad_(True).to(dtype).train()
        return DiffusionLoss(unet.to(dtype), config.loss.loss, self.towers)

    def on_meta(self) -> list[Any]:
        config, files = self.config, self.files
        with torch.device("meta"):
            if "unet" in files.parts:
                unet = files.without_weights("unet")
            else:
                side = config.pictures.resolution[0] // self.scale
                unet = build(config.network, config.loop.seed, self.channels, side, text_width(files))
            towers = towers_on_meta(files).requires_grad_(True) if config.full.train_text else None
        if config.unet.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        return [nn.Module.to(each, DTYPES[config.full.weights]) for each in (unet, towers) if each is not None]

    def stepper(self, optimizer: torch.optim.Optimizer) -> WeightByWeight | None:
        """One weight at a time, if weights are in bf16 or stepped in the backward pass.

        Raises:
            InputError: there are several processes, whose gradients are put together after it.
        """
        full = self.config.full
        if full.fused_backward and self.accelerator.num_processes > 1:
            raise InputError("fused_backward steps before processes have put their gradients together; leave it out")
        if not self.config.by_weight:
            return None
        return WeightByWeight(optimizer, full.rounding, self.config.loop.seed, full.fused_backward)

    def all_texts(self) -> list[str]:
        """The texts to encode before training: none if the text encoders are trained."""
        return [] if self.config.full.train_text else super().all_texts()

    def words(self, texts: Sequence[str]) -> dict[str, Tensor]:
        return {"tokens": self.towers.tokenize(texts)} if self.towers else super().words(texts)

    def preview_words(self, text: str) -> dict[str, Tensor]:
        if self.towers is None:
            return super().preview_words(text)
        return self.towers(self.towers.tokenize([text]).to(self.device))

    def preview(self) -> Image.Image:
        """A contact sheet with one picture for each preview prompt, drawn from the same noise every time."""
        pipe = make_pipeline(self.encoded.vae(), self.unet, self.noise, None, self.files)
        pictures = [Image.fromarray(picture) for picture in self.draw_prompts(pipe)]
        return labelled_sheet({"": pictures}, self.prompts)

    def export(self, new: Path, history: list[dict[str, float]], step: int, last: bool) -> None:
        """Save the whole pipeline, as a folder or as one file."""
        towers, vae = self.towers or TextTowers.load(self.files), self.encoded.vae().cpu()
        pipe = make_pipeline(vae, self.unet, self.noise, towers, self.files)
        if self.config.full.save_as == "folder":
            fill_pipeline(pipe, new)
            return
        fill_pipeline(pipe, new / PARTS)
        for note in write_file(find_model(str(new / PARTS)), new / FILE, (), dict):  # type: ignore[arg-type]
            self.accelerator.print(note)
        shutil.rmtree(new / PARTS)


def text_width(files: Model) -> int:
    """The number of features of a model's text states."""
    return sum(files.setting(part, "hidden_size", int, 512) for part in files.text_parts)


def run(config: TextToImageConfig) -> Path:
    """Train a U-Net, or resume its training.

    Returns:
        The folder of the pipeline.

    Raises:
        InputError: settings, data or model that cannot work.
        TrainingError, Interrupted: see `fit`.
    """
    task = TextToImageTask(config)
    check_fits(task)
    return fit(task, task.config)


if __name__ == "__main__":
    sys.exit(main(TextToImageConfig, "sd_ext.training.train_text_to_image:run", __doc__))
