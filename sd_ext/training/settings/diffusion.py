"""Settings shared by everything that trains a diffusion model on captioned pictures, and those of a whole U-Net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sd_ext.errors import InputError
from sd_ext.training.settings.base import RunConfig, setting

PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class DiffusionConfig(RunConfig):
    """Data, captions, caches, loss, noise, validation: the same for a LoRA and for a whole U-Net."""

    model: str = setting("", "the model to start from: a pipeline folder or Hub id", "MODEL", free=True)
    variant: str = setting("", "which weight files of the model to read, e.g. fp16", "NAME", free=True)

    resolution: tuple[int, ...] = setting(  # type: ignore[assignment]  # several: a picture is a sample at each
        (64,), "pictures have about this side squared in area; several: each it is large enough for", "PIXELS,..."
    )
    buckets: bool = setting(False, "keep the pictures' proportions (else all are cut to squares)")
    bucket_step: int = setting(64, "sides of buckets are multiples of this", "PIXELS")
    bucket_ratio: float = setting(2.0, "buckets are at most so many times longer than wide")
    upscale: bool = setting(False, "enlarge pictures that are smaller than their bucket (else they get a smaller one)")
    crop: str = setting("center", "which part of a picture a bucket shows", choices=("center", "random"))
    min_size: int = setting(16, "pictures whose shorter side is below this are left out", "PIXELS")
    epochs: int = setting(0, "passes over the data, in place of steps; 0 for steps", "N")
    repeats: int = setting(1, "times an epoch holds each picture, beside what the data itself says", "N")

    captionless: str = setting("skip", "what to do with pictures without caption", choices=("skip", "use"))
    instance_prompt: str = setting("", "caption of pictures that have none", "TEXT")
    prefix: str = setting("", "put before every caption", "TEXT")
    shuffle_tags: bool = setting(False, "shuffle the tags of a caption")
    tag_dropout: float = setting(0.0, "share of tags left out")
    keep_tokens: int = setting(0, "leading tags that are neither shuffled nor left out", "N")
    tag_separator: str = setting(",", "what is between two tags", "TEXT")
    caption_variants: int = setting(8, "shuffled or shortened wordings of a caption in an epoch's choice", "N")
    text_dropout: float = setting(0.1, "share of captions replaced by the empty one (classifier-free guidance)")

    cache: bool = setting(True, "encode pictures and captions once; latents are still drawn anew each step")
    cache_dir: str = setting("", "where; else inside the run's folder", "DIR", free=True)
    cache_dtype: str = setting("fp16", "what it stores", choices=("fp16", "fp32"))

    prediction_type: str = setting(
        "auto", "what the U-Net predicts; auto: what the model's scheduler says, epsilon for a new one",
        choices=("auto", *PREDICTIONS),
    )  # fmt: skip
    zero_snr: bool = setting(False, "rescale the noise schedule to end in pure noise (Lin et al. 2023)")
    loss: str = setting("l2", "error of the prediction", choices=("l2", "l1", "huber", "smooth_l1"))
    huber_c: float = setting(0.1, "where huber and smooth_l1 turn from square to linear")
    huber_schedule: str = setting(
        "constant", "how that depends on the noise", choices=("constant", "exponential", "snr")
    )
    loss_weighting: str = setting(
        "none", "how much each noise level counts", choices=("none", "min_snr", "soft_min_snr", "debiased", "p2")
    )
    gamma: float = setting(0.0, "gamma of min_snr, soft_min_snr and p2; 0 for the customary 5, 5 and 1")
    masked_loss: bool = setting(False, "weigh the error by the pictures' masks")
    mask_floor: float = setting(0.0, "least weight where a mask is black")
    offset_noise: float = setting(0.0, "strength of noise that is constant over a channel")
    pyramid_iterations: int = setting(0, "coarser noises added to the noise", "N")
    pyramid_discount: float = setting(0.4, "strength of each coarser noise beside the one before")
    input_perturbation: float = setting(0.0, "extra noise in the input, not in the target (Ning et al. 2023)")
    timestep_min: int = setting(0, "first timestep that is trained", "T")
    timestep_max: int = setting(1000, "timesteps from this on are not trained", "T")
    timestep_power: float = setting(1.0, "more than 1 prefers clean timesteps, less than 1 noisy ones")

    checkpoint_blocks: tuple[str, ...] = setting(
        (), "gradient checkpointing only in modules whose names start so; none named: all", "NAME,...", free=True
    )
    compile: bool = setting(False, "torch.compile the U-Net's transformer blocks", free=True)
    attention_backend: str = setting(
        "default", "attention of the U-Net (sd_ext.set_attention)", choices=("default", "auto", "xformers"), free=True
    )

    validation_data: str = setting("", "held-out pictures, as data", "DATA", free=True)
    validation_split: str = setting("", "or the pictures with this split", "NAME")
    validation_share: float = setting(0.0, "or this share of the pictures, which is then not trained on")
    validation_times: int = setting(4, "timesteps (the same each time) the loss of each is measured at", "N", free=True)
    prompts: tuple[str, ...] = setting((), "captions of the previews; else the data's first", "TEXT,...", free=True)
    negative_prompt: str = setting("", "what the previews should not show", "TEXT", free=True)
    preview_guidance: float = setting(3.0, "guidance scale of the preview pictures", free=True)
    preview_steps: int = setting(20, "network calls of a preview", "N", free=True)
    preview_seed: int = setting(0, "seed of the first preview; the next have the next", free=True)

    def __post_init__(self) -> None:
        if isinstance(self.resolution, int):
            object.__setattr__(self, "resolution", (self.resolution,))
        super().__post_init__()
        for name in ("text_dropout", "tag_dropout", "mask_floor", "validation_share"):
            self._need(name, 0 <= getattr(self, name) <= 1, "from 0 to 1")
        for name in (
            "gamma",
            "epochs",
            "offset_noise",
            "pyramid_iterations",
            "input_perturbation",
            "keep_tokens",
            "timestep_min",
        ):
            self._need(name, getattr(self, name) >= 0, "0 or more")
        for name in ("bucket_step", "min_size", "repeats", "caption_variants", "validation_times", "preview_steps"):
            self._need(name, getattr(self, name) >= 1, "at least 1")
        for name in ("huber_c", "timestep_power"):
            self._need(name, getattr(self, name) > 0, "more than 0")
        self._need("bucket_ratio", self.bucket_ratio >= 1, "1 or more")
        self._need("validation_share", self.validation_share < 1, "below 1")
        self._contradictions()

    def _contradictions(self) -> None:
        def refuse(message: str) -> None:
            raise InputError(f"settings contradict each other: {message}")

        if self.timestep_min >= self.timestep_max:
            refuse(f"timestep_min {self.timestep_min} is not below timestep_max {self.timestep_max}")
        if self.cache and self.crop == "random":
            refuse("crop = random needs pictures encoded anew each step: add cache = false")
        if self.zero_snr and self.prediction_type == "epsilon":
            refuse("pure noise says nothing about its noise: with zero_snr use v_prediction or sample")
        if sum(map(bool, (self.validation_data, self.validation_split, self.validation_share))) > 1:
            refuse("give one of validation_data, validation_split and validation_share")
        if self.checkpoint_blocks and not self.gradient_checkpointing:
            refuse("checkpoint_blocks without gradient_checkpointing")
        if (self.keep_tokens or self.tag_separator != ",") and not (self.shuffle_tags or self.tag_dropout):
            refuse("keep_tokens and tag_separator act only with shuffle_tags or tag_dropout")


@dataclass(frozen=True)
class TextToImageConfig(DiffusionConfig):
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
    rephrase: float = setting(
        0.0, "share of captions said in another way: with an article, in a phrase, short of a word"
    )
    beta_schedule: str = setting(
        "scaled_linear", "noise schedule of a new U-Net", choices=("linear", "scaled_linear", "squaredcos_cap_v2")
    )
    beta_start: float = setting(0.00085, "first beta")
    beta_end: float = setting(0.012, "last beta")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need("rephrase", 0 <= self.rephrase <= 1, "from 0 to 1")
        if len(self.attention) != len(self.channels):
            raise InputError(f"attention has {len(self.attention)} levels, channels {len(self.channels)}; give as many")
