"""All settings of the scripts that train a model from random weights: autoencoder, text encoder, U-Net.

The settings of LoRA training are in `lora/config.py`. This module does not import torch, so that `--help` is instant.
A setting called `channels` lists the feature maps of each level, from the finest to the coarsest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sd_ext.errors import InputError
from sd_ext.training.data.settings import SourceSettings, SquareSettings
from sd_ext.training.diffusion.config import DiffusionConfig
from sd_ext.training.model.settings import CheckpointingSettings, StartSettings
from sd_ext.training.run.config import RunConfig
from sd_ext.training.run.settings import LoopSettings
from sd_ext.training.settings.setting import SHARE, Settings, setting


@dataclass(frozen=True)
class ScratchConfig(RunConfig):
    """The settings that autoencoder training and text encoder training have in common."""

    start: StartSettings = StartSettings()
    data: SourceSettings = SourceSettings()
    pictures: SquareSettings = SquareSettings()
    memory: CheckpointingSettings = CheckpointingSettings()


@dataclass(frozen=True)
class AutoencoderSettings(Settings):
    """The shape of a new autoencoder, and its loss."""

    channels: tuple[int, ...] = setting((32, 32, 96, 128), "feature maps per level; levels halve", "N,N,...")
    layers_per_block: int = setting(1, "ResNet blocks per level", "N")
    norm_groups: int = setting(16, "groups of the group norms", "N")
    latent_channels: int = setting(4, "channels of the latent", "N")
    kl_weight: float = setting(1e-6, "weight of the posterior's KL divergence, summed over a latent")
    l1_weight: float = setting(0.1, "weight of the mean absolute error beside the mean squared error")
    strangers: float = setting(
        0.0, "share of pictures in whose place come plain colours, noise and enlarged cuttings, which keep the latents "
        "of everything bounded", within=SHARE
    )  # fmt: skip
    decoder_only: bool = setting(False, "train the decoder of --model alone: every picture keeps its latent")


@dataclass(frozen=True)
class AutoencoderConfig(ScratchConfig):
    """Settings of `train_autoencoder`."""

    section: ClassVar[str] = "autoencoder"

    data: SourceSettings = SourceSettings(split="all")
    autoencoder: AutoencoderSettings = AutoencoderSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.autoencoder.decoder_only and not self.start.model:
            raise InputError("decoder_only needs model, the autoencoder whose encoder shall stay as it is")


@dataclass(frozen=True)
class ClipSettings(Settings):
    """The shape of a new CLIP and of its tokenizer."""

    vocabulary: int = setting(2000, "tokens of the tokenizer", "N")
    tokens: int = setting(16, "length of a tokenized caption, with its start and end", "N")
    width: int = setting(192, "features of a text state (the U-Net's cross_attention_dim)", "N")
    layers: int = setting(3, "layers of the text tower", "N")
    heads: int = setting(4, "attention heads of both towers", "N")
    vision_width: int = setting(192, "features of the vision tower", "N")
    vision_layers: int = setting(3, "layers of the vision tower", "N")
    patch: int = setting(16, "patches of the vision tower are this large", "PIXELS")
    projection: int = setting(128, "features of the space where captions and pictures meet", "N")


@dataclass(frozen=True)
class TextEncoderConfig(ScratchConfig):
    """Settings of `train_text_encoder`."""

    section: ClassVar[str] = "text_encoder"

    loop: LoopSettings = LoopSettings(batch_size=128)
    clip: ClipSettings = ClipSettings()


@dataclass(frozen=True)
class PartSettings(Settings):
    """Parts that are given by themselves, in place of those of `model`."""

    autoencoder: str = setting("", "folder of the AutoencoderKL, or of a pipeline that has one", "DIR", free=True)
    text_encoder: str = setting("", "folder with text_encoder/ and tokenizer/ (a pipeline has both)", "DIR", free=True)


@dataclass(frozen=True)
class NewUnetSettings(Settings):
    """The shape of a new U-Net, and its noise schedule."""

    channels: tuple[int, ...] = setting((128, 128), "feature maps per level; levels halve", "N,N,...")
    attention: tuple[int, ...] = setting((1, 1), "1 for levels with self- and cross-attention", "0|1,...")
    layers_per_block: int = setting(1, "ResNet blocks per level", "N")
    head_dim: int = setting(32, "features of one attention head", "N")
    norm_groups: int = setting(32, "groups of the group norms", "N")
    text_with_time: bool = setting(False, "the whole text also reaches every block the way the time does")
    scale_shift: bool = setting(False, "time scales features as well as shifting them")
    beta_schedule: str = setting(
        "scaled_linear", "noise schedule of a new U-Net", choices=("linear", "scaled_linear", "squaredcos_cap_v2")
    )
    beta_start: float = setting(0.00085, "first beta")
    beta_end: float = setting(0.012, "last beta")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.attention) != len(self.channels):
            raise InputError(f"attention has {len(self.attention)} levels, channels {len(self.channels)}; give as many")


@dataclass(frozen=True)
class PhraseSettings(Settings):
    """Captions said in other ways."""

    rephrase: float = setting(
        0.0, "share of captions said in another way: with an article, in a phrase, short of a word", within=SHARE
    )


@dataclass(frozen=True)
class TextToImageConfig(DiffusionConfig):
    """Settings of `train_text_to_image`."""

    section: ClassVar[str] = "text_to_image"

    loop: LoopSettings = LoopSettings(batch_size=64)
    parts: PartSettings = PartSettings()
    network: NewUnetSettings = NewUnetSettings()
    phrases: PhraseSettings = PhraseSettings()
