"""The settings that all training scripts share: folder, loop, machine, optimizer and learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from typing_extensions import Self

from sd_ext.training.optimizer.names import PRESETS, preset
from sd_ext.training.optimizer.schedules import RateSettings, learning_rate
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
            raise contradiction(f"{name} averages by itself; leave out ema")
        if self.optimizer.preset.constant and self.rate.lr_schedule != "constant":
            raise contradiction(f"{name} averages in place of a falling learning rate; leave out lr_schedule")

    def change(self, **values: Any) -> Self:
        """See `Config.change`. A change of the optimizer alone also sets what is usual for it.

        That is its learning rate (`Preset.usual_rate`), and for one that averages the weights a constant schedule and
        no averaging of ours (`Preset.constant`). What is among `values` is used instead.
        """
        before = self.optimizer.preset
        if values.get("optimizer", self.optimizer.optimizer) != self.optimizer.optimizer:
            known, script = preset(values["optimizer"]), type(self)()
            values.setdefault("learning_rate", known.usual_rate(self._adamw_rate()))
            if known.constant != before.constant:
                values.setdefault("lr_schedule", "constant" if known.constant else script.rate.lr_schedule)
                values.setdefault("ema", 0.0 if known.constant else script.loop.ema)
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
        return {"learning_rate": f"{self.optimizer.optimizer}: {known.help}"} if known.own_rate else {}

    def training(self) -> str:
        """The optimizer and its learning rate in a line, which every run begins with."""
        known, rate = self.optimizer.preset, self.rate
        said = f"{self.optimizer.optimizer}, learning rate {rate.learning_rate:g}, {rate.lr_schedule}"
        if known.learning_rate and not 0.1 <= rate.learning_rate / known.learning_rate <= 10:
            said += (
                f": what it finds is multiplied by {rate.learning_rate:g}, so it may train next to nothing or "
                f"diverge; its own is {known.learning_rate:g}"
            )
        if self.loop.steps < rate.warmup:
            highest = learning_rate(rate, self.loop.steps - 1, self.loop.steps)
            said += f"; the run ends within the warm-up of {rate.warmup} steps, so it gets no higher than {highest:.3g}"
        return said
