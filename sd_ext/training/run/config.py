"""The settings that all training scripts share: folder, loop, machine, optimizer and learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from typing_extensions import Self

from sd_ext.training.optimizer.names import PRESETS, preset
from sd_ext.training.optimizer.schedules import RateSettings
from sd_ext.training.optimizer.settings import OptimizerSettings
from sd_ext.training.run.settings import FolderSettings, LoopSettings, MachineSettings
from sd_ext.training.settings.config import Config
from sd_ext.training.settings.setting import contradiction


@dataclass(frozen=True)
class RunConfig(Config):
    """The settings that `fit` reads; the base of every training script's settings."""

    folder: FolderSettings = FolderSettings()
    loop: LoopSettings = LoopSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    rate: RateSettings = RateSettings()
    machine: MachineSettings = MachineSettings()

    def __post_init__(self) -> None:
        name = self.optimizer.optimizer
        if self.optimizer.preset.constant and self.loop.ema:
            raise contradiction(f"{name} averages by itself; set ema = 0")
        if self.optimizer.preset.constant and self.rate.lr_schedule != "constant":
            raise contradiction(f"{name} averages in place of a falling learning rate; set lr_schedule = constant")

    def change(self, **values: Any) -> Self:
        """See `Config.change`. A change of the optimizer alone also sets the learning rate that is usual for it.

        See `Preset.usual_rate`; a learning rate that is among `values` is used instead.
        """
        if values.get("optimizer", self.optimizer.optimizer) != self.optimizer.optimizer:
            values.setdefault("learning_rate", preset(values["optimizer"]).usual_rate(self._adamw_rate()))
        return super().change(**values)

    def _adamw_rate(self) -> float:
        """The learning rate to which these settings' rate corresponds with AdamW, see `Preset.rate_share`."""
        known = self.optimizer.preset
        script = type(self)().rate.learning_rate
        return script if known.learning_rate else self.rate.learning_rate / known.rate_share

    @classmethod
    def epilog(cls) -> str:
        """See `Config.epilog`: one line of help for each optimizer in `PRESETS`."""
        return "\n".join(["optimizers:", *(f"  {name:<20}{known.help}" for name, known in PRESETS.items())])

    def notes(self) -> dict[str, str]:
        """See `Config.notes`: a note on the learning rate, if the optimizer needs another one than AdamW."""
        known = self.optimizer.preset
        wants = known.learning_rate or known.rate_share != 1
        return {"learning_rate": f"{self.optimizer.optimizer}: {known.help}"} if wants else {}
