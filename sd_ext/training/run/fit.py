"""One run from settings to a saved model: folder, resume, logging, previews, checkpoints, Ctrl-C.

OUT/run.json        the settings; a folder that holds another run is refused
OUT/run.lock        locked by the process that trains here
OUT/config.toml     all settings, also those that do not affect the result; written at every start
OUT/checkpoints/    step-00000500, ...
OUT/exports/        results from before the end, see the setting `save_every`
OUT/history.jsonl   the log of metrics
OUT/previews/       contact sheets
OUT/logs/           what trackers write
OUT/model/          the result; appears when the run is complete
OUT/model.sha256    checksums of the result; running the same command again verifies them
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, is_tensorboard_available, is_wandb_available
from safetensors import SafetensorError

from sd_ext import whole
from sd_ext.errors import TrainingError
from sd_ext.training.data.ahead import read_ahead
from sd_ext.training.data.order import Pass, StepOrder
from sd_ext.training.optimizer.averaged import to_training
from sd_ext.training.optimizer.make import make_optimizer, parameter_groups
from sd_ext.training.optimizer.schedules import learning_rate
from sd_ext.training.quick.attention import quicken_attention
from sd_ext.training.quick.group_norm import quicken
from sd_ext.training.run import checkpoint, trackers
from sd_ext.training.run.best import agreed, ends_early, take_best
from sd_ext.training.run.config import RunConfig
from sd_ext.training.run.exports import evaluating, export_due, save_result, stopped
from sd_ext.training.run.folder import alone, open_run
from sd_ext.training.run.history import History
from sd_ext.training.run.loop import Ema, Run, train
from sd_ext.training.run.machine import check_machine, uses_cpu
from sd_ext.training.run.parent import Parent, inherit, parent_of
from sd_ext.training.run.progress import TrainingProgress
from sd_ext.training.run.result import check as check_result
from sd_ext.training.run.saved import resume, save
from sd_ext.training.run.signals import Interrupted, handle_signals
from sd_ext.training.run.task import Task
from sd_ext.training.settings.kept import SETTINGS, keep_settings


def make_accelerator(config: RunConfig) -> Accelerator:
    """An Accelerator with the device, precision and tracker of the settings.

    Raises:
        InputError: see `check_machine`.
    """
    check_machine(config)
    there = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available, "none": lambda: False}
    return Accelerator(
        cpu=uses_cpu(config.machine),
        mixed_precision=config.machine.mixed_precision,
        log_with=config.folder.tracker if there[config.folder.tracker]() else None,
        project_dir=config.folder.out,
        # The loop accumulates gradients itself; without this, accelerate would also divide by its own configuration's
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )


def descent(parent: Parent, run: Run) -> str:
    """A line that says what the run starts from, and at which learning rate it goes on."""
    if "step" not in parent:
        return f"starts from {parent['from']}"
    step, config = parent["step"], run.config
    rate = learning_rate(config.rate, step, config.loop.steps)
    return f"starts from {parent['run']} at step {step} of {config.loop.steps}, where the learning rate is {rate:.3g}"


def batches(task: Task, config: RunConfig, accelerator: Accelerator, first: int) -> Iterator[list[tuple[Pass, tuple]]]:
    """The batches of this process, from step `first` on, without end; read ahead by `workers` threads.

    Yields:
        For each step, a list of (pass, arguments of the model).
    """
    processes, loop, workers = accelerator.num_processes, config.loop, config.machine.workers
    group = loop.batch_size * loop.accumulation * processes
    order = StepOrder(task.sizes, loop.batch_size, group, loop.seed)

    def calls() -> Iterator[Any]:
        step = first
        while True:
            work = order.passes(step, accelerator.process_index, processes)
            yield partial(lambda passes: [(each, task.read(each)) for each in passes], work)
            step += 1

    for step, work in enumerate(read_ahead(calls(), workers, 2 * workers), first):
        task.after(step)
        yield [(each, task.batch(each, read, accelerator.device)) for each, read in work]


def fit(task: Task, config: RunConfig) -> Path:
    """Run a training task to its end, or resume it from the newest checkpoint in its folder.

    If the result exists already, its checksums are verified and nothing is trained.

    Args:
        task: what is trained.
        config: the settings; `out` is the folder of the run.

    Returns:
        The folder of the result, OUT/model.

    Raises:
        InputError: the folder belongs to another run or is in use, or the settings do not work on this machine.
        TrainingError: a loss was not finite, the disk is full, or all checkpoints are damaged.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint of the last completed step was written.
    """
    accelerator = make_accelerator(config)
    with alone(config, task.name, task.parts, accelerator.is_main_process):
        return fit_alone(task, config, accelerator)


def fit_alone(task: Task, config: RunConfig, accelerator: Accelerator) -> Path:
    """See `fit`, of which this is what happens while the folder is this run's own."""
    with accelerator.main_process_first():
        folder = open_run(config, task.name, task.parts)
        parent = parent_of(config, task.name)
        if accelerator.is_main_process:
            keep_settings(config, folder / SETTINGS)
            if parent:
                inherit(parent, folder)
    result = folder / "model"
    if result.exists():
        if accelerator.is_main_process:
            check_result(result)
        return result
    task.begin(accelerator)
    if parent and not checkpoint.checkpoints(folder / "checkpoints"):
        task.start_from(parent["from"])
    run = start(task, config, accelerator)
    sealed = resume(run, folder / "checkpoints", parent)
    task.after(run.step)
    history = History(folder / "history.jsonl", run.step, accelerator.is_main_process)
    history.check(sealed)
    first = (parent or {}).get("step", 0)
    ended = ends_early(run, task, history, first)
    export_due(run, task, history, folder)  # it may have been killed between checkpoint and export
    trackers.begin(accelerator, config, run.step)
    try:
        with (
            handle_signals() as asked,
            TrainingProgress(
                task.name, config.loop.steps, run.step, config.folder.log_every, accelerator.is_main_process
            ) as progress,
        ):
            millions = sum(p.numel() for p in task.model.parameters() if p.requires_grad) / 1e6
            progress.say(config.training())
            if parent:
                progress.say(descent(parent, run))
            progress.say(f"{task.name}: {millions:.2f} M parameters on {accelerator.device}, from step {run.step}")
            for metrics in [] if ended else train(run):
                ended = observe(run, task, folder, metrics, progress, history, first)
                if ended:
                    break
                if agreed(accelerator, bool(asked)) and run.step < config.loop.steps:
                    save(run, folder / "checkpoints", history)
                    raise Interrupted(stopped(run, task, history, folder))
            if task.early.patience:
                progress.say(take_best(run, task, history, folder / "checkpoints", first, ended))
        save_result(run, task, history, result)
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"the run stopped at step {run.step}: {error}; last whole checkpoint: {run.last_checkpoint}. "
            f"Make room in {folder}, or mend what is named here, and the same command goes on from there"
        ) from error
    finally:
        accelerator.end_training()  # after this, processes can no longer wait for one another
    return result


def start(task: Task, config: RunConfig, accelerator: Accelerator) -> Run:
    """Prepare a run at step 0: memory layout, fast CPU layers, optimizer, averaged weights."""
    task.arrange()
    if accelerator.device.type == "cpu":
        quicken(task.model)
        if accelerator.mixed_precision == "bf16":
            quicken_attention(task.model)
    groups, settings = groups_of(task, config.optimizer.weight_decay), config.optimizer
    optimizer = make_optimizer(settings.optimizer, groups, config.rate.learning_rate, settings.options)
    model, prepared = accelerator.prepare(task.model, optimizer)
    to_training(prepared)
    ema = Ema(accelerator.unwrap_model(model), config.loop.ema) if config.loop.ema else None
    stepper = task.stepper(prepared)
    task.watch(ema)
    return Run(
        config, accelerator, model, prepared, partial(batches, task, config, accelerator), ema=ema, stepper=stepper,
        names=task.names, notes=task.notes(),
    )  # fmt: skip


def groups_of(task: Task, weight_decay: float) -> list[dict[str, Any]]:
    """The optimizer's parameter groups, see `parameter_groups`.

    Groups of parameters listed in `task.stops` have an entry "until": the step from which on they are not trained.
    """
    by_stop: dict[int, list[tuple[str, Any]]] = {}
    for name, p in task.model.named_parameters():
        stop = next((stop for part, stop in task.stops.items() if f".{part}." in f".{name}."), 0)
        by_stop.setdefault(stop if p.requires_grad else 0, []).append((name, p))
    groups = []
    for stop, named in by_stop.items():
        if any(p.requires_grad for _, p in named):
            made = parameter_groups(named, weight_decay, task.ratios)
            groups += [{**group, "until": stop} if stop else group for group in made]
    return groups


def observe(
    run: Run,
    task: Task,
    folder: Path,
    metrics: dict[str, float],
    progress: TrainingProgress,
    history: History,
    first: int = 0,
) -> bool:
    """After a step: update the progress bar and, when they are due, validate, preview, log, save and export.

    Args:
        run: the run.
        task: what is trained.
        folder: the run's folder.
        metrics: of the step, from `train`.
        progress: the progress bar.
        history: the log.
        first: the step of the run's parent.

    Returns:
        Whether the run ends here, because its validations say so.
    """
    settings, step, last = run.config.folder, run.step, run.step == run.config.loop.steps
    progress.update(step, metrics)
    validates = settings.validate_every and (step % settings.validate_every == 0 or last)
    if validates:
        metrics = {**metrics, **look(run, task, folder / "previews" / f"step-{step:08d}.png")}
        run.accelerator.wait_for_everyone()
    if step % settings.log_every == 0 or last or "validation_loss" in metrics:
        run.accelerator.log(metrics, step=step)
        history.add(step, metrics)
    before = run.best
    ended = bool(validates) and ends_early(run, task, history, first)
    better = agreed(run.accelerator, run.best != before) if validates and task.early.patience else False
    exported = settings.save_every and step % settings.save_every == 0
    if step % settings.checkpoint_every == 0 or exported or last or ended or better:
        save(run, folder / "checkpoints", history)
    export_due(run, task, history, folder)
    return ended and not last


def look(run: Run, task: Task, path: Path) -> dict[str, float]:
    """Validate, and save the task's preview at `path`, in the first process only.

    Returns:
        The validation metrics; empty in other processes.
    """
    if not run.accelerator.is_main_process:
        return {}
    with evaluating(run, task):
        measured, sheet = task.validate(), task.preview()
    if sheet:
        with whole.file(path) as new:
            sheet.save(new)
        trackers.log_preview(run.accelerator, sheet, run.step)
    return measured
