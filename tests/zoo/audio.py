"""Sound: AudioLDM, AudioLDM 2 and MusicLDM, given the embeddings of their texts."""

from __future__ import annotations

import importlib
from typing import Any

import diffusers
import transformers

from . import components as c
from .entry import Broken, Entry, entry

FAMILY = "Sound"
MEL = 8
"""Channels of a spectrogram."""


@c.shared
def vocoder() -> transformers.SpeechT5HifiGan:
    return transformers.SpeechT5HifiGan(
        transformers.SpeechT5HifiGanConfig(
            model_in_dim=MEL,
            upsample_initial_channel=4,
            upsample_rates=[2, 2],
            upsample_kernel_sizes=[4, 4],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1, 3]],
            normalize_before=False,
        )
    )


@c.shared
def spectrogram_autoencoder() -> diffusers.AutoencoderKL:
    """Downsamples by 2."""
    return c.autoencoder(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
    )


@c.shared
def clap() -> transformers.ClapTextModelWithProjection:
    """Never run: the pipelines ask it for a data type."""
    return transformers.ClapTextModelWithProjection(
        transformers.ClapTextConfig(
            vocab_size=8,
            hidden_size=c.WIDTH,
            intermediate_size=c.WIDTH,
            num_attention_heads=2,
            num_hidden_layers=1,
            projection_dim=c.WIDTH,
        )
    )


@c.shared
def unet_with_text_as_class() -> diffusers.UNet2DConditionModel:
    return c.unet(
        cross_attention_dim=(8, 16),
        class_embed_type="simple_projection",
        class_embeddings_concat=True,
        projection_class_embeddings_input_dim=c.WIDTH,
    )


@c.shared
def unet_with_two_texts() -> Any:
    cls = importlib.import_module("diffusers.pipelines.audioldm2").AudioLDM2UNet2DConditionModel
    own = {key: value for key, value in c.UNET.items() if key != "cross_attention_dim"}
    return cls(**own, cross_attention_dim=((c.WIDTH, c.WIDTH),) * 2)


POOL = {
    "vae": spectrogram_autoencoder,
    "text_encoder": clap,
    "text_encoder_2": c.text_encoder,  # likewise never run
    "language_model": c.text_encoder,
    "unet": unet_with_text_as_class,
    "scheduler": c.scheduler,
    "vocoder": vocoder,
}
OUTPUT = {"output_type": "pt", "audio_length_in_s": 0.004}
EMBEDS = {
    "prompt_embeds": lambda: c.embedding(1, c.WIDTH),
    "negative_prompt_embeds": lambda: -c.embedding(1, c.WIDTH),
}
TWO_TEXTS = {
    name: lambda: c.embedding(1, 8, c.WIDTH)
    for name in (
        "prompt_embeds",
        "negative_prompt_embeds",
        "generated_prompt_embeds",
        "negative_generated_prompt_embeds",
    )
} | {name: lambda: c.embedding(1, 8) > -9 for name in ("attention_mask", "negative_attention_mask")}


ENTRIES: list[Entry | Broken] = [
    entry("AudioLDMPipeline", FAMILY, POOL, EMBEDS | OUTPUT),
    entry("MusicLDMPipeline", FAMILY, POOL, EMBEDS | OUTPUT),
    entry("AudioLDM2Pipeline", FAMILY, POOL, TWO_TEXTS | OUTPUT, parts=lambda: {"unet": unet_with_two_texts()}),
]
