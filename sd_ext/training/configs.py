"""Every setting of the training scripts: one dataclass field = one flag = one line of help.

This module imports no torch, so that `--help` and `--dry-run` are instant. Durations are in optimizer steps, pictures
are square and measured in pixels, `channels` count the feature maps of each level from the finest to the coarsest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

from sd_ext.errors import InputError


def setting(default: Any, help: str, unit: str | None = None, choices: tuple[str, ...] = (), free: bool = False) -> Any:
    """A dataclass field with its line of help.

    Args:
        default: the value when nothing is given.
        help: one line.
        unit: what the help shows after the flag, e.g. "STEPS".
        choices: the values allowed; empty for any.
        free: whether a run may be resumed with another value (it does not change the result).
    """
    return field(default=default, metadata={"help": help, "unit": unit, "choices": choices, "free": free})


@dataclass(frozen=True)
class RunConfig:
    """What every training run has."""

    section: ClassVar[str] = ""  # the table of a recipe file that holds these settings

    data: str = setting("", "folder of pictures with metadata.jsonl (the imagefolder convention)", "DIR", free=True)
    out: str = setting("", "folder of the run: checkpoints, previews, logs, and at the end the model", "DIR", free=True)
    model: str = setting("", "start from this model folder (or pipeline folder), not from nothing", "DIR", free=True)
    split: str = setting("train", "train on the pictures with this split in metadata.jsonl; 'all' for every picture")
    resolution: int = setting(64, "pictures are resized and cropped to this", "PIXELS")
    flip: bool = setting(False, "mirror half of the pictures, drawn anew each time")
    steps: int = setting(1000, "optimizer steps in all", "STEPS")
    batch_size: int = setting(32, "pictures per process in one forward pass", "N")
    accumulation: int = setting(1, "forward passes whose gradients make one optimizer step", "N")
    learning_rate: float = setting(1e-3, "the highest learning rate", "LR")
    lr_schedule: str = setting("cosine", "how it falls after the warm-up", choices=("cosine", "linear", "constant"))
    warmup: int = setting(200, "steps over which the learning rate rises from 0", "STEPS")
    weight_decay: float = setting(0.01, "AdamW's decay of matrices and kernels (not of biases and norms)")
    beta2: float = setting(0.99, "AdamW's second decay rate")
    clip: float = setting(1.0, "the gradient's norm is cut to this; 0 for never", "NORM")
    ema: float = setting(0.999, "decay of the averaged weights, which are what is saved; 0 for no averaging")
    mixed_precision: str = setting("no", "what forward passes compute in", choices=("no", "bf16", "fp16"))
    gradient_checkpointing: bool = setting(False, "trade a second forward pass for memory")
    seed: int = setting(0, "every draw at step s depends on (seed, s) only")
    device: str = setting("auto", "where to train", choices=("auto", "cpu", "cuda"), free=True)
    workers: int = setting(0, "processes that read pictures ahead", "N", free=True)
    log_every: int = setting(20, "steps between two lines of the log", "STEPS", free=True)
    validate_every: int = setting(1000, "steps between two preview pictures; 0 for none", "STEPS", free=True)
    checkpoint_every: int = setting(500, "steps between two checkpoints", "STEPS", free=True)
    keep: int = setting(2, "checkpoints kept", "N", free=True)
    tracker: str = setting("tensorboard", "where metrics go", choices=("tensorboard", "none"), free=True)

    def __post_init__(self) -> None:
        for spec in fields(self):
            value, choices = getattr(self, spec.name), spec.metadata.get("choices")
            if choices and value not in choices:
                raise InputError(f"{spec.name} is {value!r}; it can be {', '.join(choices)}")
            if isinstance(value, float) and not math.isfinite(value):
                raise InputError(f"{spec.name} is {value}; it must be a finite number")
        for name in ("steps", "batch_size", "accumulation", "resolution", "checkpoint_every", "keep", "log_every"):
            self._need(name, getattr(self, name) >= 1, "at least 1")
        for name in ("warmup", "weight_decay", "clip", "validate_every", "workers"):
            self._need(name, getattr(self, name) >= 0, "0 or more")
        self._need("learning_rate", self.learning_rate > 0, "more than 0")
        self._need("ema", 0 <= self.ema < 1, "from 0 up to, not including, 1")
        self._need("beta2", 0 < self.beta2 < 1, "between 0 and 1")

    def _need(self, name: str, fulfilled: bool, allowed: str) -> None:
        if not fulfilled:
            raise InputError(f"{name} is {getattr(self, name)}; it must be {allowed}")


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


@dataclass(frozen=True)
class TextToImageConfig(RunConfig):
    """Settings of `train_text_to_image`."""

    section: ClassVar[str] = "text_to_image"

    autoencoder: str = setting("", "folder of the AutoencoderKL, or of a pipeline that has one", "DIR", free=True)
    text_encoder: str = setting("", "folder with text_encoder/ and tokenizer/ (a pipeline has both)", "DIR", free=True)
    batch_size: int = setting(64, "pictures per process in one forward pass", "N")
    channels: tuple[int, ...] = setting((128, 128), "feature maps per level; levels halve", "N,N,...")
    attention: tuple[int, ...] = setting((1, 1), "1 for levels with self- and cross-attention", "0|1,...")
    layers_per_block: int = setting(1, "ResNet blocks per level", "N")
    head_dim: int = setting(32, "features of one attention head", "N")
    norm_groups: int = setting(32, "groups of the group norms", "N")
    prediction_type: str = setting("epsilon", "what the U-Net predicts", choices=("epsilon", "v_prediction", "sample"))
    min_snr: float = setting(0.0, "gamma of min-SNR loss weighting; 0 for none")
    text_dropout: float = setting(0.1, "share of captions replaced by the empty one (classifier-free guidance)")
    rephrase: float = setting(
        0.0, "share of captions said in another way: with an article, in a phrase, short of a word"
    )
    beta_schedule: str = setting(
        "scaled_linear", "noise schedule", choices=("linear", "scaled_linear", "squaredcos_cap_v2")
    )
    beta_start: float = setting(0.00085, "first beta")
    beta_end: float = setting(0.012, "last beta")
    cache: bool = setting(True, "encode pictures and captions once; latents are still drawn anew each step")
    preview_captions: tuple[str, ...] = setting(
        (), "captions of the previews; else the data's first", "TEXT,...", free=True
    )
    preview_guidance: float = setting(3.0, "guidance scale of the preview pictures", free=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need("text_dropout", 0 <= self.text_dropout <= 1, "from 0 to 1")
        self._need("rephrase", 0 <= self.rephrase <= 1, "from 0 to 1")
        self._need("min_snr", self.min_snr >= 0, "0 or more")
        if len(self.attention) != len(self.channels):
            raise InputError(f"attention has {len(self.attention)} levels, channels {len(self.channels)}; give as many")


def result_settings(config: RunConfig) -> dict[str, Any]:
    """The settings that change a run's result: those a resumed run must share with the one it continues."""
    values = {spec.name: getattr(config, spec.name) for spec in fields(config) if not spec.metadata["free"]}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
