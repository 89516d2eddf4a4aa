"""Settings of consistency distillation."""

from __future__ import annotations

from dataclasses import dataclass

from sd_ext.errors import InputError
from sd_ext.training.settings.setting import AT_LEAST_1, NOT_NEGATIVE, POSITIVE, Settings, setting


@dataclass(frozen=True)
class ConsistencySettings(Settings):
    """What the model as it is, the teacher, shows to the one with the LoRA."""

    solver: str = setting(
        "ddim", "sampler whose steps the teacher takes: any that looks back on no earlier step", "NAME"
    )
    skip: int = setting(20, "timesteps that are crossed between two calls of it", "T", within=AT_LEAST_1)
    teacher_guidance: tuple[float, ...] = setting(
        (7.5,), "guidance scale of the teacher; of two numbers the least and most of those drawn", "SCALE[,SCALE]",
        within=NOT_NEGATIVE,
    )  # fmt: skip
    timestep_scaling: float = setting(
        10.0, "scale of timesteps in the boundary condition (Luo et al. 2023, arXiv 2310.04378)", within=POSITIVE
    )
    few_steps: int = setting(4, "network calls of the LoRA's previews", "N", free=True, within=AT_LEAST_1)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.teacher_guidance
        if not 1 <= len(given) <= 2 or min(given) != next(iter(given)):
            raise InputError(
                f"teacher_guidance is {','.join(f'{each:g}' for each in given)}; give one scale, or the least and most"
            )
