"""The settings that LoRA training and U-Net training have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sd_ext.training.data.settings import BucketSettings, CaptionSettings, HeldOutSettings, SeveralSettings
from sd_ext.training.diffusion.settings import PreviewSettings
from sd_ext.training.encoding.settings import CacheSettings
from sd_ext.training.model.settings import BaseSettings, UnetSettings
from sd_ext.training.objective.settings import LossSettings, NoiseSettings, PredictionSettings, TimestepSettings
from sd_ext.training.run.config import RunConfig
from sd_ext.training.run.early import StopSettings
from sd_ext.training.settings.setting import contradiction


@dataclass(frozen=True)
class DiffusionConfig(RunConfig):
    """Base of `LoraConfig` and `TextToImageConfig`."""

    base: BaseSettings = BaseSettings()
    data: SeveralSettings = SeveralSettings()
    pictures: BucketSettings = BucketSettings()
    captions: CaptionSettings = CaptionSettings()
    held_out: HeldOutSettings = HeldOutSettings()
    stop: StopSettings = StopSettings()
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
        if self.stop.patience and not self.held_out.any:
            raise contradiction(
                "patience is for held-out pictures: set validation_share, validation_split or validation_data"
            )
        if self.stop.patience and not self.folder.validate_every:
            raise contradiction("patience counts validations, and validate_every is 0: set it")

    def result_settings(self) -> dict[str, Any]:
        """See `Config.result_settings`; where validations decide which step the result is of, also theirs."""
        decisive = {"validate_every": self.folder.validate_every, "validation_times": self.held_out.validation_times}
        return {**super().result_settings(), **(decisive if self.stop.patience else {})}
