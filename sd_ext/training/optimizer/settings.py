"""Settings of the optimizer. The settings of the learning rate are in `schedules.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sd_ext.errors import InputError
from sd_ext.training.optimizer.names import (
    PRESETS,
    Preset,
    known_packages,
    parse_options,
    preset,
    strange_package,
)
from sd_ext.training.settings.setting import BETWEEN_0_AND_1, NOT_NEGATIVE, Settings, setting


@dataclass(frozen=True)
class OptimizerSettings(Settings):
    """The optimizer."""

    optimizer: str = setting("adamw", lambda: f"{', '.join(PRESETS)}, or a class package.module.Class")
    optimizer_options: tuple[str, ...] = setting((), "arguments of the optimizer: name=value", "NAME=VALUE,...")
    allow_import: bool = setting(
        False,
        lambda: f"let optimizer = package.Class import (and run) others than {', '.join(known_packages())}",
        free=True, in_files=False,
    )  # fmt: skip
    weight_decay: float = setting(0.01, "decay of matrices and kernels (not of biases and norms)", within=NOT_NEGATIVE)
    beta2: float = setting(0.99, "second decay rate of adamw", within=BETWEEN_0_AND_1)

    @property
    def preset(self) -> Preset:
        """The properties of the chosen optimizer."""
        return preset(self.optimizer)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of its constructor: the setting `optimizer_options`, and for adamw `beta2` as well."""
        betas = {"betas": (0.9, self.beta2)} if self.optimizer == "adamw" else {}
        return {**betas, **parse_options(self.optimizer_options)}

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_options(self.optimizer_options)
        package = strange_package(self.optimizer)
        if package and not self.allow_import:
            raise InputError(
                f"optimizer {self.optimizer!r} would import the package {package}, which runs its code; "
                "if you trust it, add --allow-import"
            )
