"""Checkpoints that are whole or not there.

A checkpoint is a folder `step-00001500` of safetensors files and one JSON file:

    model.safetensors      trained weights          ema.safetensors   their average
    optimizer.safetensors  its state's tensors      state.json        step, other optimizer state, loss scale

It is written under another name, flushed to the disk, then renamed; older ones go only after that. No random state is
stored because there is none: every draw at step s comes from a generator seeded with (seed, s).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sd_ext.errors import InputError, TrainingError
from sd_ext.tensors import storable
from sd_ext.training.optimizer.state import differences, optimizer_state, restore_optimizer

__all__ = ["checkpoints", "load", "optimizer_state", "prune", "restore", "restore_optimizer", "write_folder"]

PREFIX, PARTIAL = "step-", ".partial-"


def flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_folder(target: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    """Write `{file name: tensors}` and `state.json` as one folder that appears all at once.

    A folder that is already there is left as it is: same step, same contents.

    Raises:
        TrainingError: the disk is full or fails; names the last whole checkpoint. Nothing half-written stays.
    """
    if target.exists():
        return
    partial = target.with_name(PARTIAL + target.name)
    try:
        write_partial(partial, tensors, state)
        partial.rename(target)
        flush(target.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        whole = checkpoints(target.parent)
        size = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
        raise TrainingError(
            f"cannot write {target}: {error}. It needs {size / 1e6 + 1:.0f} MB on that disk, beside the checkpoints "
            f"that are there; last whole checkpoint: {whole[-1] if whole else 'none'}, from which the run resumes"
        ) from error


def write_partial(partial: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    """Fill a new folder and wait until it is on the disk; `state.json`, the mark of a whole one, is last."""
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, group in tensors.items():
        save_file(storable(group), partial / name)
        flush(partial / name)
    (partial / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    flush(partial / "state.json")
    flush(partial)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob(f"{PREFIX}*") if (p / "state.json").is_file())


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what interrupted writes left behind.

    A checkpoint is renamed before it is emptied: killed half-way, it is not taken for a whole one.
    """
    for partial in folder.glob(f"{PARTIAL}*"):
        shutil.rmtree(partial, ignore_errors=True)
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old.rename(old.with_name(PARTIAL + old.name)), ignore_errors=True)


def restore(folder: Path, tensors: dict[str, Tensor], into: dict[str, Tensor]) -> None:
    """Copy a checkpoint's tensors over those of the same names. Nothing is changed unless all fit.

    Raises:
        InputError: names, shapes or dtypes differ; the checkpoint is from another configuration.
    """
    lost, new = sorted(tensors.keys() - into.keys()), sorted(into.keys() - tensors.keys())
    found = [differences(lost, new)] if lost or new else []
    for name in sorted(tensors.keys() & into.keys()):
        there, here = ((tuple(t.shape), str(t.dtype).removeprefix("torch.")) for t in (tensors[name], into[name]))
        if there != here:
            found.append(f"{name} is {there[1]} {there[0]} in it and {here[1]} {here[0]} here")
    if found:
        more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
        raise InputError(f"checkpoint {folder} is from another configuration: {'; '.join(found[:3])}{more}")
    with torch.no_grad():
        for name, value in into.items():
            value.copy_(tensors[name])


def load(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `write_folder` wrote.

    Raises:
        TrainingError: a file is damaged; names the folder to remove.
    """
    try:
        tensors = {p.name: load_file(p) for p in folder.glob("*.safetensors")}
        return tensors, json.loads((folder / "state.json").read_text(encoding="utf-8"))
    except Exception as error:
        raise TrainingError(f"checkpoint {folder} is damaged ({error}); remove it to use the one before") from error
