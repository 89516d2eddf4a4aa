"""Tiny random networks and tokenizers, made in memory and shared by the pipelines of the zoo.

Pictures are 64 x 64, latents (4, 8, 8). What is shared must not be changed: pipelines that swap attention processors or
take a network apart and leave it so ask for `fresh` ones.
"""

from __future__ import annotations

import functools
import string
from collections.abc import Callable
from typing import Any, TypeVar

import diffusers
import torch
import transformers

WIDTH = 16
"""Width of every text and picture embedding."""
WORDS = 24
"""Tokens of a prompt, where the pipeline does not insist on 77."""

Made = TypeVar("Made")


def seeded(make: Callable[..., Made]) -> Callable[..., Made]:
    """The same random weights each time, ready for inference, and torch's own generator left alone."""

    @functools.wraps(make)
    def made(*arguments: Any, **options: Any) -> Made:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = make(*arguments, **options)
        return module.eval().requires_grad_(False) if isinstance(module, torch.nn.Module) else module

    return made


def shared(make: Callable[..., Made]) -> Callable[..., Made]:
    """`seeded`, made once for all who ask with the same arguments; `.fresh` makes another."""
    cached = functools.cache(seeded(make))
    cached.fresh = seeded(make)  # type: ignore[attr-defined]
    return cached


def picture() -> torch.Tensor:
    """(1, 3, 64, 64) in [0, 1]."""
    return torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def mask() -> torch.Tensor:
    """(1, 1, 64, 64): the right half is to be painted."""
    return torch.cat([torch.zeros(1, 1, 64, 32), torch.ones(1, 1, 64, 32)], dim=3)


def embedding(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# ---- text ------------------------------------------------------------------------------------------------------------


@functools.cache
def tokenizer() -> transformers.CLIPTokenizer:
    letters = [*string.ascii_lowercase, *string.digits]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(letter + "</w>" for letter in letters)]
    vocabulary = {word: i for i, word in enumerate(words)}
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=WORDS)


def clip_text_config() -> transformers.CLIPTextConfig:
    return transformers.CLIPTextConfig(
        vocab_size=len(tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


@shared
def text_encoder() -> transformers.CLIPTextModel:
    return transformers.CLIPTextModel(clip_text_config())


@shared
def text_encoder_with_projection() -> transformers.CLIPTextModelWithProjection:
    return transformers.CLIPTextModelWithProjection(clip_text_config())


# ---- pictures --------------------------------------------------------------------------------------------------------


def clip_vision_config() -> transformers.CLIPVisionConfig:
    return transformers.CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=64,
        patch_size=32,
    )


@shared
def image_encoder() -> transformers.CLIPVisionModelWithProjection:
    return transformers.CLIPVisionModelWithProjection(clip_vision_config())


@functools.cache
def feature_extractor() -> Any:
    return transformers.CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64})


@shared
def autoencoder(**changes: Any) -> diffusers.AutoencoderKL:
    """Downsamples by 8."""
    settings = {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [4, 4, 4, 4],
        "norm_num_groups": 2,
        "sample_size": 64,
    }
    return diffusers.AutoencoderKL(**{**settings, **changes})


@shared
def tiny_autoencoder() -> diffusers.AutoencoderTiny:
    """Downsamples by 8."""
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4, 4, 4, 4),
        decoder_block_out_channels=(4, 4, 4, 4),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )


# ---- denoisers -------------------------------------------------------------------------------------------------------

UNET = {
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": WIDTH,
}
XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "cross_attention_dim": 2 * WIDTH,
    "projection_class_embeddings_input_dim": WIDTH + 6 * 8,
    "use_linear_projection": True,
}


@shared
def unet(**changes: Any) -> diffusers.UNet2DConditionModel:
    return diffusers.UNet2DConditionModel(**{**UNET, **changes})


def unet_xl(**changes: Any) -> diffusers.UNet2DConditionModel:
    return unet(**{**XL, **changes})


def unet_refiner(**changes: Any) -> diffusers.UNet2DConditionModel:
    """Reads the second text encoder only, and an aesthetic score in place of the target's size."""
    own = {"cross_attention_dim": WIDTH, "projection_class_embeddings_input_dim": WIDTH + 5 * 8}
    return unet_xl(**{**own, **changes})


def scheduler() -> diffusers.DDIMScheduler:
    return diffusers.DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, clip_sample=False
    )


def ancestral() -> diffusers.EulerAncestralDiscreteScheduler:
    return diffusers.EulerAncestralDiscreteScheduler.from_config(scheduler().config)


def lcm() -> diffusers.LCMScheduler:
    return diffusers.LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


SD: dict[str, Callable[[], Any]] = {
    "vae": autoencoder,
    "text_encoder": text_encoder,
    "tokenizer": tokenizer,
    "unet": unet,
    "scheduler": scheduler,
}
SDXL: dict[str, Callable[[], Any]] = {
    **SD,
    "text_encoder_2": text_encoder_with_projection,
    "tokenizer_2": tokenizer,
    "unet": unet_xl,
}
