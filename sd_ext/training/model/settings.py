"""Settings of the trained model: the model to start from, gradient checkpointing, attention, compilation."""

from __future__ import annotations

from dataclasses import dataclass

from sd_ext.training.settings.setting import Settings, contradiction, setting


@dataclass(frozen=True)
class StartSettings(Settings):
    """What training from nothing may start from instead."""

    model: str = setting("", "start from this model folder (or pipeline folder), not from nothing", "DIR", free=True)


@dataclass(frozen=True)
class BaseSettings(Settings):
    """The pipeline that is trained further."""

    model: str = setting("", "start from this pipeline folder, .safetensors file or Hub id", "MODEL", free=True)
    revision: str = setting("", "which branch, tag or commit of a Hub id", "NAME", free=True)
    variant: str = setting("", "which weight files of the model to read, e.g. fp16", "NAME", free=True)


@dataclass(frozen=True)
class CheckpointingSettings(Settings):
    """Memory against time."""

    gradient_checkpointing: bool = setting(False, "trade a second forward pass for memory")


@dataclass(frozen=True)
class UnetSettings(CheckpointingSettings):
    """How the U-Net computes."""

    checkpoint_blocks: tuple[str, ...] = setting(
        (), "gradient checkpointing only in modules whose names start so; none named: all", "NAME,...", free=True
    )
    compile: bool = setting(False, "torch.compile the U-Net's transformer blocks", free=True)
    attention_backend: str = setting(
        "default", "attention of the U-Net (sd_ext.set_attention)", choices=("default", "auto", "xformers"), free=True,
        packages={"xformers": "xformers"},
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint_blocks and not self.gradient_checkpointing:
            raise contradiction("checkpoint_blocks without gradient_checkpointing")
