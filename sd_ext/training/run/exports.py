"""What a run leaves: its result at the end, and results from before the end, in OUT/exports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from sd_ext import whole
from sd_ext.training.optimizer.averaged import evaluating as averaged
from sd_ext.training.run import checkpoint
from sd_ext.training.run.history import History
from sd_ext.training.run.loop import Run
from sd_ext.training.run.result import record as record_result
from sd_ext.training.run.task import Task

EXPORTS = "exports"


@contextlib.contextmanager
def evaluating(run: Run, task: Task) -> Iterator[None]:
    """A context in which the model is as it would be saved: averaged weights, no dropout, no gradients."""
    with averaged(run.optimizer), run.ema.applied() if run.ema else contextlib.nullcontext(), torch.no_grad():
        task.model.eval()
        try:
            yield
        finally:
            task.model.train()


def save_result(run: Run, task: Task, history: History, result: Path, last: bool = True) -> None:
    """Save the result as a folder that appears when it is complete. The first process saves, the others wait.

    Args:
        run, task, history: as in `observe`.
        result: the folder.
        last: whether the run is complete.
    """
    with evaluating(run, task):
        if run.accelerator.is_main_process:
            with whole.folder(result) as new:
                task.export(new, history.entries, run.step, last)
                if last:
                    record_result(new, result)
    run.accelerator.wait_for_everyone()


def export_now(run: Run, task: Task, history: History, folder: Path) -> Path:
    """Save what is trained so far in the run's folder of exports, unless it is there already. Returns its folder."""
    target = folder / EXPORTS / checkpoint.named(run.step)
    run.accelerator.wait_for_everyone()  # all see whether it is there before the first process writes it
    if not target.exists():
        save_result(run, task, history, target, last=False)
    return target


def export_due(run: Run, task: Task, history: History, folder: Path) -> None:
    """Export if the setting `save_every` says so. The last step has no export, but the result itself."""
    every = run.config.folder.save_every
    if every and run.step and run.step % every == 0 and run.step < run.config.loop.steps:
        export_now(run, task, history, folder)


def stopped(run: Run, task: Task, history: History, folder: Path) -> str:
    """What to say of a run that was asked to stop and has saved; if the settings say so, it is exported too."""
    also = ""
    if run.config.folder.on_interrupt == "export":
        also = f"; as it is now: {export_now(run, task, history, folder)}"
    return f"stopped at step {run.step}{also}; the same command resumes {run.last_checkpoint}"
