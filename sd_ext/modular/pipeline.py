"""The pipeline that the blocks of Stable Diffusion 1.x and 2.x run in: its components, and what loads into them."""

from __future__ import annotations

from diffusers import ModularPipeline, StableDiffusionPipeline
from diffusers.loaders import ModularIPAdapterMixin, StableDiffusionLoraLoaderMixin, TextualInversionLoaderMixin
from diffusers.pipelines.pipeline_utils import StableDiffusionMixin


class StableDiffusionModularPipeline(
    ModularPipeline,
    StableDiffusionMixin,
    TextualInversionLoaderMixin,
    StableDiffusionLoraLoaderMixin,
    ModularIPAdapterMixin,
):
    """A Modular pipeline of Stable Diffusion 1.x or 2.x, with LoRAs, learned words and IP-Adapters as usual.

    Sizes are in pixels; they are the model's own once its components are loaded, and those of SD 1.x before.
    """

    default_blocks_name = "StableDiffusionBlocks"
    encode_prompt = StableDiffusionPipeline.encode_prompt

    @property
    def default_sample_size(self) -> int:
        """The side of the latents that the U-Net was trained on."""
        unet = getattr(self, "unet", None)
        return 64 if unet is None else unet.config.sample_size

    @property
    def default_height(self) -> int:
        """The usual height of a picture."""
        return self.default_sample_size * self.vae_scale_factor

    default_width = default_height

    @property
    def vae_scale_factor(self) -> int:
        """How many pixels a latent has in a row."""
        vae = getattr(self, "vae", None)
        return 8 if vae is None else 2 ** (len(vae.config.block_out_channels) - 1)

    @property
    def num_channels_unet(self) -> int:
        """The channels that the U-Net takes."""
        unet = getattr(self, "unet", None)
        return 4 if unet is None else unet.config.in_channels

    @property
    def num_channels_latents(self) -> int:
        """The channels of the latents."""
        vae = getattr(self, "vae", None)
        return 4 if vae is None else vae.config.latent_channels
