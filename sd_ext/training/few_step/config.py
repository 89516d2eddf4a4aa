"""All settings of `train_few_step`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sd_ext.training.data.settings import CaptionSettings
from sd_ext.training.few_step.settings import ConsistencySettings
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.settings import AdapterSettings
from sd_ext.training.lora.teacher import check_frozen_text
from sd_ext.training.objective.settings import LossSettings
from sd_ext.training.run.settings import LoopSettings
from sd_ext.training.settings.setting import contradiction


@dataclass(frozen=True)
class FewStepConfig(LoraConfig):
    """Settings of `train_few_step`."""

    section: ClassVar[str] = "few_step"
    presets: ClassVar[dict[str, str]] = {name: f"few_step_{name}.toml" for name in ("embedded", "sd15", "sd21", "sdxl")}
    task: ClassVar[str] = "sd_ext.training.few_step.task:FewStepTask"

    loop: LoopSettings = LoopSettings(batch_size=4, ema=0.95)
    captions: CaptionSettings = CaptionSettings(text_dropout=0.0)
    loss: LossSettings = LossSettings(loss="huber", huber_c=0.001)
    adapters: AdapterSettings = AdapterSettings(
        rank=64, targets=("attention", "feed_forward", "projection", "resnet", "sampler")
    )
    consistency: ConsistencySettings = ConsistencySettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_frozen_text(self, "a few-step LoRA")
        if self.noise.input_perturbation:
            raise contradiction("input_perturbation is for predicting noise, and a few-step LoRA jumps to x0")
