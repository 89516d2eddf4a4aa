"""Train the U-Net of a latent diffusion model on captioned pictures; autoencoder and text encoder stay as they are.

    accelerate launch training/train_text_to_image.py --data PICTURES --autoencoder VAE --text-encoder CLIP --out RUN

Each pass draws a timestep, noise and a sample of the latent's posterior for every picture, replaces some captions by
the empty one (classifier-free guidance, Ho & Salimans 2022, arXiv 2207.12598) and takes the squared error of the
prediction (Ho et al. 2020, arXiv 2006.11239, eq. 14). The result is a whole pipeline folder.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from sd_ext.errors import InputError
from sd_ext.schedulers import NoiseSchedule
from sd_ext.training.assemble import make_pipeline, noise_settings, save_pipeline
from sd_ext.training.config_cli import main
from sd_ext.training.configs import TextToImageConfig
from sd_ext.training.data import BatchOrder, Pictures, picture_batches, random
from sd_ext.training.objective import min_snr_weight, stratified_timesteps, target
from sd_ext.training.phrases import rephrasings
from sd_ext.training.progress import contact_sheet, to_uint8
from sd_ext.training.run import fit
from sd_ext.training.share import from_folder, report_broken
from sd_ext.training.train_text_encoder import tokenize


def build(config: TextToImageConfig, latent_channels: int, latent_size: int, text_width: int) -> Any:
    """A new U-Net as the settings say, its weights a function of the seed."""
    torch.manual_seed(config.seed)
    down = ["CrossAttnDownBlock2D" if level else "DownBlock2D" for level in config.attention]
    up = ["CrossAttnUpBlock2D" if level else "UpBlock2D" for level in reversed(config.attention)]
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


class DiffusionLoss(nn.Module):
    """`(x_t (b, c, h, w), t (b,), text states (b, n, d), target (b, c, h, w), weight (b,))` -> loss, a scalar."""

    def __init__(self, unet: Any):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, states: Tensor, wanted: Tensor, weight: Tensor) -> dict[str, Tensor]:
        error = (self.unet(x, t, states).sample.float() - wanted).square().mean((1, 2, 3))
        return {"loss": (weight * error).mean(), "noisier_half": error[t >= t.median()].detach().mean()}


class Encoders:
    """The frozen autoencoder and text encoder, and what they make of the data, kept when `cache` is on.

    Of a latent the posterior's mean and standard deviation are kept, so that every step still draws a fresh sample.
    """

    def __init__(self, config: TextToImageConfig, captions: list[str]):
        self.vae = from_folder(AutoencoderKL, config.autoencoder or config.model, "vae").eval().requires_grad_(False)
        root = config.text_encoder or config.model
        self.text_encoder = from_folder(CLIPTextModel, root, "text_encoder").eval().requires_grad_(False)
        self.tokenizer = from_folder(CLIPTokenizer, root, "tokenizer")
        taken = set(captions)  # "dog face" short of a word is another picture's caption
        others = [[p for p in rephrasings(c) if p not in taken] if config.rephrase else [] for c in captions]
        self.first = torch.tensor([0, *(len(o) for o in others)]).cumsum(0) + len(captions)  # of each caption's others
        spoken = [*captions, *(phrase for phrases in others for phrase in phrases), ""]
        self.tokens = tokenize(self.tokenizer, spoken)  # captions, their rephrasings, and last the empty one
        self.cached_states: Tensor | None = None
        self.cached_moments: Tensor | None = None

    def to(self, device: torch.device) -> None:
        self.vae.to(device)
        self.text_encoder.to(device)

    @torch.no_grad()
    def fill(self, pictures: Pictures, device: torch.device, batch_size: int = 32) -> None:
        """Encode every picture and caption, once."""
        self.cached_states = torch.cat([self.encode_tokens(t.to(device)).cpu() for t in self.tokens.split(256)])
        moments = []
        for start in range(0, len(pictures), batch_size):
            indices = range(start, min(start + batch_size, len(pictures)))
            pixels = torch.stack([pictures.pixels(i) for i in indices])
            moments.append(self.moments(pixels.to(device)).cpu())
        self.cached_moments = torch.cat(moments)

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> Tensor:
        """Mean and standard deviation of the scaled latents: (b, 2, c, h, w)."""
        posterior = self.vae.encode(pixels).latent_dist
        return torch.stack([posterior.mean, posterior.std], dim=1) * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_tokens(self, tokens: Tensor) -> Tensor:
        return self.text_encoder(tokens).last_hidden_state

    def rephrase(self, indices: Tensor, share: float, generator: torch.Generator) -> Tensor:
        """Indices of captions, a share of them replaced by those of one of the caption's rephrasings."""
        count = self.first[indices + 1] - self.first[indices]
        chosen = torch.rand(len(indices), generator=generator) < share
        other = self.first[indices] + (torch.rand(len(indices), generator=generator) * count).long()
        return torch.where(chosen & (count > 0), other, indices)

    def states(self, indices: Tensor, dropped: Tensor, device: torch.device) -> Tensor:
        """Text states (b, n, d) of the texts with these indices, or of the empty one where dropped."""
        indices = torch.where(dropped, len(self.tokens) - 1, indices)
        if self.cached_states is not None:
            return self.cached_states[indices].to(device)
        return self.encode_tokens(self.tokens[indices].to(device))


class TextToImageTask:
    """The U-Net's side of `sd_ext.training.run.fit`."""

    name = "text to image"

    def __init__(self, config: TextToImageConfig):
        if not (config.autoencoder or config.model) or not (config.text_encoder or config.model):
            raise InputError("give --autoencoder and --text-encoder, or --model with a pipeline that has both")
        if config.cache and config.flip:
            raise InputError("flip needs pictures encoded anew each step: add --cache false")
        self.config = config
        self.pictures = Pictures(config.data, config.resolution, config.split)
        report_broken(self.pictures)
        self.encoders = Encoders(config, self.pictures.captions)
        self.vae = self.encoders.vae
        side = config.resolution // 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.shape = (self.vae.config.latent_channels, side, side)
        text_width = self.encoders.text_encoder.config.hidden_size
        if config.model:
            self.unet = from_folder(UNet2DConditionModel, config.model, "unet")
        else:
            self.unet = build(config, *self.shape[:2], text_width)
        if self.unet.config.cross_attention_dim != text_width or self.unet.config.in_channels != self.shape[0]:
            raise InputError(
                f"the U-Net takes {self.unet.config.in_channels} latent channels and "
                f"{self.unet.config.cross_attention_dim} text features, "
                f"the encoders give {self.shape[0]} and {text_width}"
            )
        if config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        self.model = DiffusionLoss(self.unet)
        schedule = NoiseSchedule.from_config(noise_settings(config))
        self.alpha, self.sigma = (torch.from_numpy(a).float() for a in (schedule.alpha, schedule.sigma))

    def batches(self, first: int, accelerator: Accelerator) -> Iterator[tuple[Tensor, ...]]:
        config, device, rank = self.config, accelerator.device, accelerator.process_index
        self.encoders.to(device)
        if config.cache and self.encoders.cached_moments is None:
            self.encoders.fill(self.pictures, device)
        order = BatchOrder(len(self.pictures), config.batch_size, config.seed, first, rank, accelerator.num_processes)
        for number, (moments, indices) in enumerate(self.latents(order, device), first):
            yield self.draw(moments, indices, random(config.seed, 2, number, rank), device)

    def latents(self, order: BatchOrder, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless (moments (b, 2, c, h, w), indices (b,)), from the cache or from pixels."""
        if self.encoders.cached_moments is not None:
            for batch in order:
                indices = torch.tensor(batch)
                yield self.encoders.cached_moments[indices], indices
        for pixels, indices in picture_batches(self.pictures, order, self.config.workers, self.config.flip):
            yield self.encoders.moments(pixels.to(device)).cpu(), indices

    def draw(
        self, moments: Tensor, indices: Tensor, generator: torch.Generator, device: torch.device
    ) -> tuple[Tensor, ...]:
        """Everything random about one pass: the arguments of `DiffusionLoss`."""
        config, shape = self.config, (len(indices), *self.shape)
        x0 = moments[:, 0] + moments[:, 1] * torch.randn(shape, generator=generator)
        eps = torch.randn(shape, generator=generator)
        t = stratified_timesteps(len(indices), len(self.alpha), generator)
        dropped = torch.rand(len(indices), generator=generator) < config.text_dropout
        alpha, sigma = (c[t][:, None, None, None] for c in (self.alpha, self.sigma))
        if config.rephrase:
            indices = self.encoders.rephrase(indices, config.rephrase, generator)
        weight = min_snr_weight(config.prediction_type, (alpha / sigma).square().flatten(), config.min_snr)
        x = alpha * x0 + sigma * eps
        wanted = target(config.prediction_type, x0, eps, alpha, sigma)
        x = x.to(device, memory_format=torch.channels_last)
        return x, t.to(device), self.encoders.states(indices, dropped, device), wanted.to(device), weight.to(device)

    def pipeline(self) -> Any:
        """The pipeline with the U-Net as it is."""
        parts = (self.vae, self.encoders.text_encoder, self.encoders.tokenizer, self.unet)
        return make_pipeline(*parts, noise_settings(self.config))

    def preview(self) -> Image.Image:
        """One picture for each preview caption, the same noise every time."""
        captions = list(self.config.preview_captions or self.pictures.captions[:16])
        generators = [torch.Generator().manual_seed(i) for i in range(len(captions))]
        images = self.pipeline()(
            captions, num_inference_steps=20, guidance_scale=self.config.preview_guidance, generator=generators,
            height=self.config.resolution, width=self.config.resolution, output_type="pt",
        ).images  # fmt: skip
        return contact_sheet(list(to_uint8(images * 2 - 1)), columns=min(8, len(captions)))

    def export(self, folder: Path) -> None:
        """Save the whole pipeline."""
        self.unet.eval()
        save_pipeline(self.pipeline(), folder)


def run(config: TextToImageConfig) -> Path:
    """Train, or resume; returns the folder of the pipeline."""
    return fit(TextToImageTask(config), config)


if __name__ == "__main__":
    sys.exit(main(TextToImageConfig, "sd_ext.training.train_text_to_image:run", __doc__))
