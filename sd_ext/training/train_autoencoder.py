"""Train an AutoencoderKL: pictures to latents eight (2^(levels-1)) times smaller and back.

    accelerate launch training/train_autoencoder.py --data PICTURES --out RUN

Loss: mean squared error + `l1_weight` x mean absolute error + `kl_weight` x KL(posterior || N(0, I)), the KL summed
over a latent as in Diffusers. The saved config's `scaling_factor` is 1 / the standard deviation of the latents, so
that the U-Net sees unit variance (Rombach et al. 2022, arXiv 2112.10752, appendix G). With `decoder_only` the encoder
and the factor stay as they are, so that a U-Net trained on its latents goes with the new decoder too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn

from sd_ext.sheets import contact_sheet
from sd_ext.training.configs import AutoencoderConfig, AutoencoderSettings
from sd_ext.training.data.draws import Stream, stream_generator
from sd_ext.training.data.images import to_uint8
from sd_ext.training.data.order import Pass
from sd_ext.training.data.pictures import Pictures, fingerprint, read_pixels
from sd_ext.training.data.report import report
from sd_ext.training.data.strangers import estrange
from sd_ext.training.data.unused import unused_files
from sd_ext.training.model.trainable import load_part
from sd_ext.training.run.fit import fit
from sd_ext.training.run.task import Task
from sd_ext.training.settings.command import main


def build(settings: AutoencoderSettings, side: int, seed: int) -> Any:
    """Make a new AutoencoderKL.

    Args:
        settings: its channels, layers and latent channels.
        side: height and width of the pictures it is meant for, in pixels.
        seed: seed of its random weights.
    """
    torch.manual_seed(seed)
    levels = len(settings.channels)
    autoencoder: Any = AutoencoderKL  # Any, since Diffusers annotates its tuples wrongly
    return autoencoder(
        block_out_channels=settings.channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=settings.layers_per_block,
        norm_num_groups=settings.norm_groups,
        latent_channels=settings.latent_channels,
        sample_size=side,
    )


class AutoencoderLoss(nn.Module):
    """The loss of an autoencoder.

    Called with pixels (b, 3, h, w) and the noise that samples the posterior (b, c, h', w'), it returns the scalars
    "loss", "mse", "kl", and "psnr" in decibels.

    Args:
        vae: the autoencoder.
        l1_weight: weight of the mean absolute error.
        kl_weight: weight of the KL divergence.
    """

    def __init__(self, vae: Any, l1_weight: float, kl_weight: float):
        super().__init__()
        self.vae, self.l1_weight, self.kl_weight = vae, l1_weight, kl_weight

    def forward(self, pixels: Tensor, noise: Tensor) -> dict[str, Tensor]:
        posterior = self.vae.encode(pixels).latent_dist
        decoded = self.vae.decode(posterior.mean + posterior.std * noise).sample.float()
        error = decoded - pixels
        mse, l1, kl = error.square().mean(), error.abs().mean(), posterior.kl().float().mean()
        loss = mse + self.l1_weight * l1 + self.kl_weight * kl
        return {"loss": loss, "mse": mse, "kl": kl, "psnr": 10 * torch.log10(4 / mse.detach())}


class AutoencoderTask(Task):
    """The task of training an autoencoder, for `sd_ext.training.run.fit.fit`."""

    name = "autoencoder"

    def __init__(self, config: AutoencoderConfig):
        self.config = config
        self.pictures = Pictures(
            config.data.data, config.pictures.resolution, config.data.split, folder_repeats=config.data.folder_repeats
        )
        report(self.pictures, unused_files(config.data.data, config.data.split, self.pictures.items))
        self.sizes = self.pictures.sizes
        self.parts = {"samples": fingerprint(self.pictures, [""] * len(self.pictures))}
        settings, model, side = config.autoencoder, config.start.model, config.pictures.resolution
        self.vae = load_part(AutoencoderKL, model, "vae") if model else build(settings, side, config.loop.seed)
        if settings.decoder_only:
            for part in filter(None, (self.vae.encoder, self.vae.quant_conv)):
                part.requires_grad_(False)
        if config.memory.gradient_checkpointing:
            self.vae.enable_gradient_checkpointing()
        self.model = AutoencoderLoss(self.vae, settings.l1_weight, settings.kl_weight)

    def read(self, each: Pass) -> Tensor:
        """The pictures of a pass, strangers among them: (b, 3, height, width) in [-1, 1]."""
        seed, share = self.config.loop.seed, self.config.autoencoder.strangers
        pixels = read_pixels(self.pictures, each, seed, self.config.data.flip)
        draws = [stream_generator(seed, Stream.STRANGERS, each.step, position) for position in each.positions]
        return torch.stack([estrange(*picture) for picture in zip(pixels, [share] * len(pixels), draws, strict=True)])

    def batch(self, each: Pass, read: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """The arguments of `AutoencoderLoss.forward`: pictures and noise."""
        side = self.config.pictures.resolution // 2 ** (len(self.vae.config.block_out_channels) - 1)
        shape = (self.vae.config.latent_channels, side, side)
        seed = self.config.loop.seed
        generators = [stream_generator(seed, Stream.AUTOENCODER, each.step, position) for position in each.positions]
        noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
        return read.to(device, memory_format=torch.channels_last), noise.to(device)

    def some(self, count: int) -> Tensor:
        """At most `count` pictures, spread evenly over the set: (count, 3, height, width) in [-1, 1]."""
        every = max(1, len(self.pictures) // count)
        return torch.stack([self.pictures.pixels(i) for i in range(0, len(self.pictures), every)[:count]])

    def preview(self) -> Image.Image:
        """A contact sheet: rows of pictures, each row above its reconstructions."""
        pixels = self.some(32)
        decoded = reconstruct(self.vae, pixels)
        rows = []
        for start in range(0, len(pixels), 16):
            rows += [*to_uint8(pixels[start : start + 16]), *to_uint8(decoded[start : start + 16])]
        return contact_sheet([Image.fromarray(picture) for picture in rows], columns=min(16, len(pixels)))

    def export(self, new: Path, history: list[dict[str, float]], step: int, last: bool) -> None:
        """Measure the scaling factor, 1 / standard deviation of the latents, and save the autoencoder with it; the
        factor of latents that were not to change stays.
        """
        self.vae.eval()
        if not self.config.autoencoder.decoder_only:
            std = latent_std(self.vae, self.pictures)
            self.vae.register_to_config(scaling_factor=round(1 / std, 6), force_upcast=False)
        self.vae.save_pretrained(new)


@torch.no_grad()
def reconstruct(vae: Any, pixels: Tensor, batch_size: int = 32) -> Tensor:
    """Encode pictures and decode the posterior means.

    Args:
        vae: the autoencoder.
        pixels: (count, 3, height, width) in [-1, 1].
        batch_size: pictures encoded at once.

    Returns:
        The reconstructions, of the same shape, on the CPU.
    """
    device = next(vae.parameters()).device
    latents = (vae.encode(part.to(device)).latent_dist.mean for part in pixels.split(batch_size))
    return torch.cat([vae.decode(latent).sample.float().cpu() for latent in latents])


@torch.no_grad()
def latent_std(vae: Any, pictures: Pictures, most: int = 4096) -> float:
    """The standard deviation of posterior samples, over at most about `most` evenly spread pictures."""
    device = next(vae.parameters()).device
    indices = range(0, len(pictures), max(1, len(pictures) // most))
    total = torch.zeros(3, dtype=torch.float64)
    for start in range(0, len(indices), 32):
        pixels = torch.stack([pictures.pixels(i) for i in indices[start : start + 32]]).to(device)
        posterior = vae.encode(pixels).latent_dist
        mean, variance = posterior.mean.double().cpu(), posterior.var.double().cpu()
        total += torch.stack([torch.tensor(float(mean.numel())), mean.sum(), (mean.square() + variance).sum()])
    count, first, second = total.tolist()
    return (second / count - (first / count) ** 2) ** 0.5


def run(config: AutoencoderConfig) -> Path:
    """Train an autoencoder, or resume its training.

    Returns:
        The folder of the autoencoder.

    Raises:
        InputError: settings or data that cannot work.
        TrainingError, Interrupted: see `fit`.
    """
    return fit(AutoencoderTask(config), config)


if __name__ == "__main__":
    sys.exit(main(AutoencoderConfig, "sd_ext.training.train_autoencoder:run", __doc__))
