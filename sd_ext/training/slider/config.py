"""All settings of `train_slider`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sd_ext.training.data.settings import CaptionSettings
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.settings import AdapterSettings
from sd_ext.training.lora.teacher import check_frozen_text
from sd_ext.training.run.settings import LoopSettings
from sd_ext.training.settings.setting import contradiction
from sd_ext.training.slider.settings import SliderSettings


@dataclass(frozen=True)
class SliderConfig(LoraConfig):
    """Settings of `train_slider`."""

    section: ClassVar[str] = "slider"
    presets: ClassVar[dict[str, str]] = {name: f"slider_{name}.toml" for name in ("embedded", "sd15", "sd21", "sdxl")}
    task: ClassVar[str] = "sd_ext.training.slider.task:SliderTask"

    loop: LoopSettings = LoopSettings(batch_size=2, ema=0.0)
    captions: CaptionSettings = CaptionSettings(captionless="use", text_dropout=0.0)
    adapters: AdapterSettings = AdapterSettings(rank=4)
    slider: SliderSettings = SliderSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_frozen_text(self, "a slider")
        if self.adapters.method != "lora":
            raise contradiction(f"a slider's strength goes both ways, which method = {self.adapters.method} does not")
        if self.slider.positive and self.noise.input_perturbation:
            raise contradiction(
                "input_perturbation is for predicting noise, and this slider learns from the base model"
            )

    def check_complete(self) -> None:
        """Raise `InputError` if the slider has no ends."""
        _ = self.slider.ends
