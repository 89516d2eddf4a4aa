"""The settings that LoRA training and U-Net training have in common."""

from __future__ import annotations

from dataclasses import dataclass

from sd_ext.training.data.settings import BucketSettings, CaptionSettings, HeldOutSettings, SeveralSettings
from sd_ext.training.diffusion.settings import PreviewSettings
from sd_ext.training.encoding.settings import CacheSettings
from sd_ext.training.model.settings import BaseSettings, UnetSettings
from sd_ext.training.objective.settings import LossSettings, NoiseSettings, PredictionSettings, TimestepSettings
from sd_ext.training.run.config import RunConfig
from sd_ext.training.settings.setting import contradiction


@dataclass(frozen=True)
class DiffusionConfig(RunConfig):
    """Base of `LoraConfig` and `TextToImageConfig`."""

    base: BaseSettings = BaseSettings()
    data: SeveralSettings = SeveralSettings()
    pictures: BucketSettings = BucketSettings()
    captions: CaptionSettings = CaptionSettings()
    held_out: HeldOutSettings = HeldOutSettings()
    cache: CacheSettings = CacheSettings()
    prediction: PredictionSettings = PredictionSettings()
    loss: LossSettings = LossSettings()
    noise: NoiseSettings = NoiseSettings()
    timesteps: TimestepSettings = TimestepSettings()
    unet: UnetSettings = UnetSettings()
    previews: PreviewSettings = PreviewSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cache.cache and self.pictures.crop == "random":
            raise contradiction("crop = random needs pictures encoded anew each step: add cache = false")
