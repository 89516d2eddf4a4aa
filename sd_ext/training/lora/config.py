"""All settings of `train_lora`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sd_ext.training.data.settings import BucketSettings
from sd_ext.training.diffusion.config import DiffusionConfig
from sd_ext.training.lora.rates import shares
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

TOKEN_RATE = 5e-4  # of new words with AdamW


@dataclass(frozen=True)
class LoraConfig(DiffusionConfig):
    """Settings of `train_lora`."""

    section: ClassVar[str] = "lora"
    presets: ClassVar[dict[str, str]] = {name: f"lora_{name}.toml" for name in ("embedded", "sd15", "sd21", "sdxl")}
    plan: ClassVar[str] = "sd_ext.training.lora.plan:plan_lora"
    task: ClassVar[str] = "sd_ext.training.lora.task:LoraTask"  # what is made of these settings, see `task_of`

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
        self._check_rates()
        precision = self.memory.base_precision
        if precision in ("bf16", "fp16") and precision != self.machine.mixed_precision:
            raise contradiction(f"weights in {precision} need passes in it: set mixed_precision = {precision}")
        if self.text.text_encoder and self.captions.clip_skip > 1:
            raise contradiction("with clip_skip the last layers are not read, so text_encoder would not train them")
        if precision == "int8" and self.adapters.changes_base:
            raise contradiction(f"init = {self.adapters.init} changes base weights, which int8 cannot hold")

    def check_complete(self) -> None:
        """Raise `InputError` if something is not said that this kind of LoRA cannot do without."""

    def _check_rates(self) -> None:
        """Refuse rates of their own beside an optimizer that has one rate for all (Prodigy, D-Adaptation)."""
        if not self.optimizer.preset.one_rate:
            return
        rate, adapters = self.rate.learning_rate, self.adapters
        own = {
            "text_encoder_learning_rate": self.text.text_encoder_learning_rate not in (0, rate),
            "token_learning_rate": self.words.token_learning_rate not in (0, rate),
            "lora_plus": adapters.lora_plus != 1,
            "block_rates": len(set(shares(adapters.block_rates)) - {0.0}) > 1,
        }
        if found := [name for name, set_apart in own.items() if set_apart]:
            raise contradiction(f"{self.optimizer.optimizer} finds one rate for all; leave out {', '.join(found)}")

    @property
    def token_rate(self) -> float:
        """The learning rate of new words."""
        known, given = self.optimizer.preset, self.words.token_learning_rate
        return given or (self.rate.learning_rate if known.one_rate else known.usual_rate(TOKEN_RATE))
