"""Settings of the scripts that train an autoencoder and a text encoder from nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sd_ext.training.settings.base import RunConfig, setting


@dataclass(frozen=True)
class AutoencoderConfig(RunConfig):
    """Settings of `train_autoencoder`."""

    section: ClassVar[str] = "autoencoder"

    split: str = setting("all", "train on the pictures with this split in metadata.jsonl; 'all' for every picture")
    channels: tuple[int, ...] = setting((32, 32, 96, 128), "feature maps per level; levels halve", "N,N,...")
    layers_per_block: int = setting(1, "ResNet blocks per level", "N")
    norm_groups: int = setting(16, "groups of the group norms", "N")
    latent_channels: int = setting(4, "channels of the latent", "N")
    kl_weight: float = setting(1e-6, "weight of the posterior's KL divergence, summed over a latent")
    l1_weight: float = setting(0.1, "weight of the mean absolute error beside the mean squared error")


@dataclass(frozen=True)
class TextEncoderConfig(RunConfig):
    """Settings of `train_text_encoder`."""

    section: ClassVar[str] = "text_encoder"

    batch_size: int = setting(128, "pictures per process in one forward pass", "N")
    vocabulary: int = setting(2000, "tokens of the tokenizer", "N")
    tokens: int = setting(16, "length of a tokenized caption, with its start and end", "N")
    width: int = setting(192, "features of a text state (the U-Net's cross_attention_dim)", "N")
    layers: int = setting(3, "layers of the text tower", "N")
    heads: int = setting(4, "attention heads of both towers", "N")
    vision_width: int = setting(192, "features of the vision tower", "N")
    vision_layers: int = setting(3, "layers of the vision tower", "N")
    patch: int = setting(16, "patches of the vision tower are this large", "PIXELS")
    projection: int = setting(128, "features of the space where captions and pictures meet", "N")
