"""One run from settings to a saved model: folder, resume, logging, previews, checkpoints, Ctrl-C.

OUT/run.json        the settings; a folder that holds another run is refused
OUT/checkpoints/    step-00000500, ...
OUT/previews/       contact sheets
OUT/logs/           TensorBoard
OUT/model/          the result; appears, whole, when the run is complete
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available
from PIL import Image
from torch import nn

from sd_ext.errors import InputError, TrainingError
from sd_ext.training import checkpoint
from sd_ext.training.configs import RunConfig, result_settings
from sd_ext.training.group_norm import quicken
from sd_ext.training.loop import Ema, Run, parameter_groups, train
from sd_ext.training.progress import TrainingProgress


class Task(Protocol):
    """What a training script brings: its name, the module that computes the loss, batches, previews and the result."""

    name: str

    @property
    def model(self) -> nn.Module:
        """Trained; called with a batch, returns scalars of which "loss" is minimised."""
        ...

    def batches(self, first: int, accelerator: Accelerator) -> Iterator[tuple]:
        """Arguments of `model` for passes `first`, `first + 1`, ..., without end."""
        ...

    def preview(self) -> Image.Image | None:
        """A contact sheet by the model as it is."""
        ...

    def export(self, folder: Path) -> None:
        """Save the model, as Diffusers and Transformers load it, into an empty folder."""
        ...


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM: the run is saved and can be resumed."""


def open_run(config: RunConfig, name: str) -> Path:
    """The run's folder, new or to be resumed.

    Raises:
        InputError: the folder holds something else, or a run with other settings; names them.
    """
    if not config.out:
        raise InputError("no folder for the run: give --out DIR")
    folder, settings = Path(config.out), {"run": name, **result_settings(config)}
    record = folder / "run.json"
    if record.is_file():
        try:
            before = json.loads(record.read_text())
        except ValueError as error:
            raise InputError(f"{record} is damaged ({error}); choose another --out") from error
        differing = [key for key in settings if before.get(key) != settings.get(key)]
        if differing:
            changes = ", ".join(f"{key} {before.get(key)!r} -> {settings.get(key)!r}" for key in differing)
            raise InputError(f"{folder} holds a run with other settings ({changes}); choose another --out")
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not a run of this script; choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / "run.json.tmp"
        partial.write_text(json.dumps(settings, indent=1))
        partial.rename(record)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}") from error
    return folder


def make_accelerator(config: RunConfig) -> Accelerator:
    """Accelerate's devices, precision and trackers as the settings say."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but PyTorch sees no CUDA device; use --device cpu")
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    if on_cpu and config.mixed_precision == "fp16":
        raise InputError("fp16 needs a GPU; on a CPU use --mixed-precision bf16 or no")
    tracker = config.tracker if config.tracker != "none" and is_tensorboard_available() else None
    return Accelerator(
        cpu=on_cpu,
        mixed_precision=config.mixed_precision,
        gradient_accumulation_steps=config.accumulation,
        log_with=tracker,
        project_dir=config.out,
    )


def inner(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer inside accelerate's wrapper."""
    return getattr(optimizer, "optimizer", optimizer)


def save(run: Run, folder: Path) -> None:
    """Write a checkpoint of this step, then drop the oldest beyond `keep`."""
    target = folder / f"{checkpoint.PREFIX}{run.step:08d}"
    if run.accelerator.is_main_process:
        model = run.accelerator.unwrap_model(run.model)
        names = {p: name for name, p in model.named_parameters() if p.requires_grad}
        tensors = {
            "model.safetensors": {name: p for p, name in names.items()},
            "optimizer.safetensors": checkpoint.optimizer_tensors(inner(run.optimizer), names),
        }
        if run.ema:
            tensors["ema.safetensors"] = run.ema.average
        scaler = run.accelerator.scaler
        state = {"step": run.step, "loss_scale": scaler.state_dict() if scaler else None, "torch": torch.__version__}
        checkpoint.write_folder(target, tensors, state)
        checkpoint.prune(folder, run.config.keep)
    run.accelerator.wait_for_everyone()
    run.last_checkpoint = str(target)


def resume(run: Run, folder: Path) -> None:
    """Go to the newest complete checkpoint, if there is one."""
    found = checkpoint.checkpoints(folder)
    if not found:
        return
    tensors, state = checkpoint.load(found[-1])
    model = run.accelerator.unwrap_model(run.model)
    names = {p: name for name, p in model.named_parameters() if p.requires_grad}
    try:
        with torch.no_grad():
            for p, name in names.items():
                p.copy_(tensors["model.safetensors"][name])
            if run.ema:
                for name, average in run.ema.average.items():
                    average.copy_(tensors["ema.safetensors"][name])
        checkpoint.restore_optimizer(inner(run.optimizer), names, tensors["optimizer.safetensors"])
    except KeyError as error:
        raise TrainingError(f"checkpoint {found[-1]} lacks {error}; remove it to go on from the one before") from error
    if state["loss_scale"] and run.accelerator.scaler:
        run.accelerator.scaler.load_state_dict(state["loss_scale"])
    run.step, run.last_checkpoint = state["step"], str(found[-1])


def fit(task: Task, config: RunConfig) -> Path:
    """Train a task to its end, resuming what is there. Returns the folder of the finished model.

    Raises:
        InputError: the folder belongs to another run.
        TrainingError: a loss was not finite.
        Interrupted: Ctrl-C or SIGTERM, after a checkpoint of the last whole step.
    """
    folder = open_run(config, task.name)
    result = folder / "model"
    if result.exists():
        return result
    accelerator = make_accelerator(config)
    task.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if accelerator.device.type == "cpu":
        quicken(task.model)
    optimizer = torch.optim.AdamW(
        parameter_groups(task.model, config.weight_decay),
        lr=config.learning_rate, betas=(0.9, config.beta2), fused=True,
    )  # fmt: skip
    model, optimizer = accelerator.prepare(task.model, optimizer)
    ema = Ema(accelerator.unwrap_model(model), config.ema) if config.ema else None
    run = Run(config, accelerator, model, optimizer, lambda first: task.batches(first, accelerator), ema)
    resume(run, folder / "checkpoints")
    accelerator.init_trackers("logs")
    try:
        with (
            handle_signals() as asked,
            TrainingProgress(
                task.name, config.steps, run.step, config.log_every, accelerator.is_main_process
            ) as progress,
        ):
            millions = sum(p.numel() for p in task.model.parameters() if p.requires_grad) / 1e6
            progress.say(f"{task.name}: {millions:.2f} M parameters on {accelerator.device}, from step {run.step}")
            for metrics in train(run):
                observe(run, task, folder, metrics, progress)
                if asked and run.step < config.steps:
                    save(run, folder / "checkpoints")
                    raise Interrupted(f"stopped at step {run.step}; the same command resumes {run.last_checkpoint}")
    finally:
        accelerator.end_training()
    if run.ema:
        run.ema.swap()
    if accelerator.is_main_process:
        partial = folder / ".partial-model"
        shutil.rmtree(partial, ignore_errors=True)
        task.export(partial)
        partial.rename(result)
    accelerator.wait_for_everyone()
    return result


def observe(run: Run, task: Task, folder: Path, metrics: dict[str, float], progress: TrainingProgress) -> None:
    """What happens after a step: the bar, the log, a preview, a checkpoint."""
    config, step = run.config, run.step
    progress.update(step, metrics)
    if step % config.log_every == 0:
        run.accelerator.log(metrics, step=step)
    last = step == config.steps
    if config.validate_every and (step % config.validate_every == 0 or last) and run.accelerator.is_main_process:
        preview(run, task, folder / "previews" / f"step-{step:08d}.png")
    if step % config.checkpoint_every == 0 or last:
        save(run, folder / "checkpoints")


def preview(run: Run, task: Task, path: Path) -> None:
    """Save a contact sheet made by the averaged weights."""
    if run.ema:
        run.ema.swap()
    task.model.eval()
    with torch.no_grad():
        sheet = task.preview()
    task.model.train()
    if run.ema:
        run.ema.swap()
    if sheet:
        path.parent.mkdir(exist_ok=True)
        sheet.save(path)


class handle_signals:
    """Within the block, Ctrl-C and SIGTERM set a flag (the value of the block) instead of killing half a step."""

    def __enter__(self) -> list[int]:
        self.asked: list[int] = []
        self.before = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # not in the main thread: signals are somebody else's
                self.before[number] = signal.signal(number, self._ask)
        return self.asked

    def _ask(self, number: int, frame: object) -> None:
        if self.asked:  # asked twice: now
            os._exit(128 + number)
        self.asked.append(number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
