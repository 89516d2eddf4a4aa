"""Settings of a run: folder, training loop, machine. All intervals are in optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass

from sd_ext.training.settings.setting import AT_LEAST_1, BELOW_1, NOT_NEGATIVE, RAISED, SAME_PRODUCT, Settings, setting


@dataclass(frozen=True)
class FolderSettings(Settings):
    """Where a run is, and what it leaves there meanwhile."""

    out: str = setting("", "folder of the run: checkpoints, previews, logs, and at the end the model", "DIR", free=True)
    from_: str = setting(
        "", "start from a run, at its newest checkpoint or STEP's, or from a LoRA file", "RUN[@STEP]|FILE", free=True
    )
    log_every: int = setting(20, "steps between two lines of the log", "STEPS", free=True, within=AT_LEAST_1)
    validate_every: int = setting(
        1000, "steps between two preview pictures; 0 for none", "STEPS", free=True, within=NOT_NEGATIVE
    )
    checkpoint_every: int = setting(500, "steps between two checkpoints", "STEPS", free=True, within=AT_LEAST_1)
    keep: int = setting(2, "checkpoints kept", "N", free=True, within=AT_LEAST_1)
    save_every: int = setting(
        0, "steps between two results in OUT/exports, whose checkpoints are kept; 0 for none", "STEPS", free=True,
        within=NOT_NEGATIVE,
    )  # fmt: skip
    on_interrupt: str = setting(
        "save", "on Ctrl-C and SIGTERM: save a checkpoint, or also export a result", choices=("save", "export"),
        free=True,
    )  # fmt: skip
    tracker: str = setting(
        "tensorboard", "where settings, metrics and previews go", choices=("tensorboard", "wandb", "none"), free=True
    )
    project: str = setting("sd-ext", "the project on W&B", "NAME", free=True)
    run_name: str = setting("", "the run's name on W&B; else that of its folder", "NAME", free=True)


@dataclass(frozen=True)
class LoopSettings(Settings):
    """What a step is, and how many there are."""

    steps: int = setting(1000, "optimizer steps in all", "STEPS", in_place=RAISED, within=AT_LEAST_1)
    batch_size: int = setting(
        32, "pictures per process in one forward pass", "N", in_place=SAME_PRODUCT, within=AT_LEAST_1
    )
    accumulation: int = setting(
        1, "forward passes whose gradients make one optimizer step", "N", in_place=SAME_PRODUCT, within=AT_LEAST_1
    )
    clip: float = setting(1.0, "the gradient's norm is cut to this; 0 for never", "NORM", within=NOT_NEGATIVE)
    ema: float = setting(
        0.999, "decay of the averaged weights, which are what is saved; 0 for no averaging", within=BELOW_1
    )
    seed: int = setting(0, "every draw at step s depends on (seed, s) only", within=NOT_NEGATIVE)


@dataclass(frozen=True)
class MachineSettings(Settings):
    """What a run takes of the machine."""

    mixed_precision: str = setting("no", "what forward passes compute in", choices=("no", "bf16", "fp16"))
    device: str = setting("auto", "where to train", choices=("auto", "cpu", "cuda"), free=True)
    workers: int = setting(0, "threads that read pictures ahead", "N", free=True, within=NOT_NEGATIVE)
