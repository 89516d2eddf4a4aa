"""Writes a run into a checkpoint, and makes it again what it was at one."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from sd_ext.errors import InputError
from sd_ext.training.optimizer.averaged import averages
from sd_ext.training.optimizer.averaged import evaluating as averaged
from sd_ext.training.run import checkpoint
from sd_ext.training.run.history import History
from sd_ext.training.run.loop import Run
from sd_ext.training.run.parent import Parent

log = logging.getLogger(__name__)


def trained(run: Run) -> dict[Any, str]:
    """The trained parameters of a run's model -> their names."""
    model = run.accelerator.unwrap_model(run.model)
    return {p: name for name, p in model.named_parameters() if p.requires_grad}


def save(run: Run, folder: Path, history: History) -> None:
    """Write a checkpoint of the current step, then remove the oldest ones beyond the setting `keep`.

    The first process writes, the others wait.

    Args:
        run: the run.
        folder: the folder of the checkpoints.
        history: the log, whose checksum the checkpoint stores.

    Raises:
        TrainingError: the disk is full or fails.
    """
    target = folder / checkpoint.named(run.step)
    if run.accelerator.is_main_process:
        names = trained(run)
        moments, scalars = checkpoint.optimizer_state(run.optimizer, names)
        tensors = {"model.safetensors": {name: p for p, name in names.items()}, "optimizer.safetensors": moments}
        if run.ema:
            tensors["ema.safetensors"] = run.ema.average
        elif averages(run.optimizer):
            with averaged(run.optimizer):
                tensors["ema.safetensors"] = {
                    name: p.detach().clone() for name, p in tensors["model.safetensors"].items()
                }
        scaler = run.accelerator.scaler
        state = {
            "step": run.step,
            "optimizer": scalars,
            "loss_scale": scaler.state_dict() if scaler else None,
            "torch": torch.__version__,
            "history": history.seal(),
            "notes": dict(run.notes),
        }
        checkpoint.write_folder(target, tensors, state)
        checkpoint.prune(folder, run.config.folder.keep, run.config.folder.save_every, run.best)
    run.accelerator.wait_for_everyone()
    run.last_checkpoint = str(target)


def resume(run: Run, folder: Path, parent: Parent | None = None) -> str | None:
    """Load the newest undamaged checkpoint, if there is one, into the run.

    From its parent's checkpoint a run takes what fits its own settings: of the optimizer what it has learnt, or nothing
    if it is another one, which is said.

    Args:
        run: a run at step 0, changed in place.
        folder: the folder of the checkpoints.
        parent: what the run starts from; None for nothing.

    Returns:
        The checksum of the log (`History.seal`) when the checkpoint was written; None without a checkpoint.

    Raises:
        TrainingError: all checkpoints are damaged.
        InputError: the checkpoint is of another configuration.
    """
    with run.accelerator.main_process_first():  # the first process renames damaged checkpoints
        found = checkpoint.newest_whole(folder)
    if not found:
        return None
    put_back(run, *found, inherited=parent is not None and found[2]["step"] == parent.get("step"))
    run.last_checkpoint = str(found[0])
    return found[2]["history"]


def put_back(run: Run, path: Path, tensors: Any, state: dict[str, Any], inherited: bool = False) -> None:
    """Make a run what it was at a checkpoint.

    Args:
        run: the run, changed in place.
        path, tensors, state: the checkpoint, from `checkpoint.load`.
        inherited: whether it is of another run, whose settings may differ.

    Raises:
        InputError: the checkpoint is of another configuration.
    """
    names = trained(run)
    try:
        checkpoint.restore(path, tensors["model.safetensors"], {name: p for p, name in names.items()})
    except InputError as error:
        more = "; a run of other adapters starts from a LoRA: sd-ext train export, then --from its file"
        raise InputError(f"{error}{more if inherited else ''}") from error
    if run.ema and inherited and "ema.safetensors" not in tensors:
        log.warning("%s has no averaged weights; they begin here", path)
        run.ema.begin()
    elif run.ema:
        checkpoint.restore(path, tensors["ema.safetensors"], run.ema.average)
    try:
        checkpoint.restore_optimizer(
            run.optimizer, names, tensors["optimizer.safetensors"], state["optimizer"], own_settings=inherited
        )
    except InputError as error:
        if not inherited:
            raise
        log.warning("the optimizer begins anew: %s", error)
    if state["loss_scale"] and run.accelerator.scaler:
        run.accelerator.scaler.load_state_dict(state["loss_scale"])
    run.step = state["step"]
