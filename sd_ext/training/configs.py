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
from sd_ext.training.optimizer.names import PRESETS
from sd_ext.training.run.config import RunConfig
from sd_ext.training.run.settings import LoopSettings
from sd_ext.training.settings.setting import NOT_NEGATIVE, SHARE, Settings, contradiction, setting


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

    channels: tuple[int, ...] = setting(
        (32, 32, 96, 128), "feature maps per level; levels halve", "N,N,...", of_weights=True
    )
    layers_per_block: int = setting(1, "ResNet blocks per level", "N", of_weights=True)
    norm_groups: int = setting(16, "groups of the group norms", "N")
    latent_channels: int = setting(4, "channels of the latent", "N", of_weights=True)
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

    vocabulary: int = setting(2000, "tokens of the tokenizer", "N", of_weights=True)
    tokens: int = setting(16, "length of a tokenized caption, with its start and end", "N", of_weights=True)
    width: int = setting(192, "features of a text state (the U-Net's cross_attention_dim)", "N", of_weights=True)
    layers: int = setting(3, "layers of the text tower", "N", of_weights=True)
    heads: int = setting(4, "attention heads of both towers", "N")
    vision_width: int = setting(192, "features of the vision tower", "N", of_weights=True)
    vision_layers: int = setting(3, "layers of the vision tower", "N", of_weights=True)
    patch: int = setting(16, "patches of the vision tower are this large", "PIXELS", of_weights=True)
    projection: int = setting(128, "features of the space where captions and pictures meet", "N", of_weights=True)


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

    channels: tuple[int, ...] = setting((128, 128), "feature maps per level; levels halve", "N,N,...", of_weights=True)
    attention: tuple[int, ...] = setting(
        (1, 1), "1 for levels with self- and cross-attention", "0|1,...", of_weights=True
    )
    layers_per_block: int = setting(1, "ResNet blocks per level", "N", of_weights=True)
    head_dim: int = setting(32, "features of one attention head", "N")
    norm_groups: int = setting(32, "groups of the group norms", "N")
    text_with_time: bool = setting(
        False, "the whole text also reaches every block the way the time does", of_weights=True
    )
    scale_shift: bool = setting(False, "time scales features as well as shifting them", of_weights=True)
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
class FullSettings(Settings):
    """What all weights are held in and stepped with, and what is written."""

    weights: str = setting("fp32", "numbers of the trained weights", choices=("fp32", "bf16"))
    rounding: str = setting(
        "stochastic", "how weights in bf16 keep small updates: kahan takes two more bytes of each",
        choices=("stochastic", "kahan"),
    )  # fmt: skip
    fused_backward: bool = setting(False, "step each weight as soon as its gradient is there, which is then freed")
    train_text: bool = setting(False, "train the text encoders too")
    text_rate: float = setting(0.0, "its learning rate; 0 for the same", "LR", within=NOT_NEGATIVE)
    save_as: str = setting(
        "folder", "the result: a pipeline folder, or one .safetensors file", choices=("folder", "file")
    )
    memory_check: bool = setting(True, "refuse a run that needs more memory than there is", free=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_rate and not self.train_text:
            raise contradiction("text_rate without train_text = true")
        if self.rounding == "kahan" and self.weights == "fp32":
            raise contradiction("rounding is of weights in bf16")


@dataclass(frozen=True)
class TextToImageConfig(DiffusionConfig):
    """Settings of `train_text_to_image`."""

    section: ClassVar[str] = "text_to_image"
    plan: ClassVar[str] = "sd_ext.training.full_plan:plan_full"

    loop: LoopSettings = LoopSettings(batch_size=64)
    parts: PartSettings = PartSettings()
    network: NewUnetSettings = NewUnetSettings()
    phrases: PhraseSettings = PhraseSettings()
    full: FullSettings = FullSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        full, known = self.full, self.optimizer.preset
        if full.weights == "bf16" and self.machine.mixed_precision != "bf16":
            raise contradiction("weights in bf16 need passes in it: set mixed_precision = bf16")
        if full.fused_backward and self.machine.mixed_precision == "fp16":
            raise contradiction("fp16 scales gradients after the backward pass, and fused_backward steps in it")
        if full.fused_backward and (self.loop.clip or self.loop.accumulation > 1):
            raise contradiction("fused_backward steps before all gradients are there: set clip = 0, accumulation = 1")
        if self.by_weight and (known.one_rate or known.constant or self.optimizer.optimizer not in PRESETS):
            raise contradiction(
                f"weights = bf16 and fused_backward step weight by weight, and {self.optimizer.optimizer} may look at "
                "all of them"
            )
        if full.train_text and self.captions.clip_skip > 1:
            raise contradiction("with clip_skip the last layers are not read, so train_text would not train them")

    @property
    def by_weight(self) -> bool:
        """Whether the optimizer is stepped for one weight at a time, see `WeightByWeight`."""
        return self.full.weights == "bf16" or self.full.fused_backward
