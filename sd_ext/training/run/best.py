"""The best step of a run by its validations: kept as a checkpoint, an end to the run, and the result."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import Accelerator

from sd_ext.errors import DamagedError, InputError
from sd_ext.training.run import checkpoint
from sd_ext.training.run.early import Verdict, judge
from sd_ext.training.run.history import History
from sd_ext.training.run.loop import Run
from sd_ext.training.run.saved import put_back
from sd_ext.training.run.task import Task


def agreed(accelerator: Accelerator, asked: bool) -> bool:
    """Whether any process was asked to stop. All must stop at the same step, or they would wait for one another."""
    if accelerator.num_processes == 1:
        return asked
    return bool(accelerator.reduce(torch.tensor(float(asked), device=accelerator.device), "sum") > 0)


def verdict(run: Run, task: Task, history: History, first: int) -> Verdict:
    """What the validations say so far, see `judge`; `first` is the step of the run's parent."""
    return judge(history.entries, task.early, run.config.folder.validate_every, run.config.loop.steps, first)


def ends_early(run: Run, task: Task, history: History, first: int) -> bool:
    """Whether the validations say that the run has come to its end; what they call the best is kept from here on.

    The first process, which validates, decides for all.
    """
    if not task.early.patience:
        return False
    said = verdict(run, task, history, first) if run.accelerator.is_main_process else Verdict()
    run.best = said.best
    return agreed(run.accelerator, said.without >= task.early.patience)


def take_best(run: Run, task: Task, history: History, checkpoints: Path, first: int, early: bool) -> str:
    """Make the run what it was at its best validation; other processes than the first stay where they are.

    Args:
        run, task, history, first: as for `verdict`.
        checkpoints: their folder.
        early: whether the run has ended before its last step.

    Returns:
        A line that says which step the result is of, and why.
    """
    if not run.accelerator.is_main_process:
        return ""
    last, said = run.step, verdict(run, task, history, first)
    why = f"no less for {said.without} validations, so the run ends at step {last}" if early else f"of {last} steps"
    try:
        path = checkpoints / checkpoint.named(said.best)
        put_back(run, path, *checkpoint.load(path))
    except (DamagedError, InputError) as error:
        return f"the result is that of step {last}, and not of {said.best}, the best: {error}"
    return f"the result is that of step {said.best}, whose validation loss of {said.loss:.4g} is the least ({why})"
