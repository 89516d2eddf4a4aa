"""All settings of `train_lora`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sd_ext.training.data.settings import BucketSettings
from sd_ext.training.diffusion.config import DiffusionConfig
from sd_ext.training.lora.settings import (
    AdapterSettings,
    ClassSettings,
    MemorySettings,
    ResultSettings,
    TextEncoderSettings,
    WordSettings,
)
from sd_ext.training.optimizer.schedules import RateSettings
from sd_ext.training.optimizer.settings import OptimizerSettings
from sd_ext.training.run.settings import LoopSettings
from sd_ext.training.settings.setting import contradiction


@dataclass(frozen=True)
class LoraConfig(DiffusionConfig):
    """Settings of `train_lora`."""

    section: ClassVar[str] = "lora"
    presets: ClassVar[dict[str, str]] = {name: f"lora_{name}.toml" for name in ("embedded", "sd15", "sd21", "sdxl")}
    plan: ClassVar[str] = "sd_ext.training.lora.plan:plan_lora"

    loop: LoopSettings = LoopSettings(batch_size=1, ema=0.0)
    optimizer: OptimizerSettings = OptimizerSettings(beta2=0.999)
    rate: RateSettings = RateSettings(learning_rate=1e-4, warmup=0)
    pictures: BucketSettings = BucketSettings(resolution=(512,), buckets=True)
    adapters: AdapterSettings = AdapterSettings()
    text: TextEncoderSettings = TextEncoderSettings()
    words: WordSettings = WordSettings()
    prior: ClassSettings = ClassSettings()
    memory: MemorySettings = MemorySettings()
    result: ResultSettings = ResultSettings()

    def __post_init__(self) -> None:
        super().__post_init__()
        precision = self.memory.base_precision
        if precision in ("bf16", "fp16") and precision != self.machine.mixed_precision:
            raise contradiction(f"weights in {precision} need passes in it: set mixed_precision = {precision}")
        if precision == "int8" and self.adapters.changes_base:
            raise contradiction(f"init = {self.adapters.init} changes base weights, which int8 cannot hold")
