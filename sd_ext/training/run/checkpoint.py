"""Checkpoints: each appears complete or not at all, and damage is noticed when it is loaded.

A checkpoint is a folder `step-00001500` of safetensors files and one JSON file, each with a checksum of its contents:

    model.safetensors      trained weights          ema.safetensors   their moving average, or the optimizer's own
    optimizer.safetensors  optimizer state tensors  state.json        step, other optimizer state, loss scale, notes

Older checkpoints are removed only after the new one is complete. No random state is stored: all random numbers of
step s come from generators seeded with (seed, s).
"""

from __future__ import annotations

import json
import logging
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sd_ext import whole
from sd_ext.checked import load_checked, save_checked
from sd_ext.declared import check, shown
from sd_ext.errors import DamagedError, InputError, TrainingError, WriteError
from sd_ext.reading import read_json
from sd_ext.training.optimizer.state import differences, optimizer_state, restore_optimizer

__all__ = [
    "checkpoints", "load", "newest_whole", "optimizer_state", "prune", "restore", "restore_optimizer", "write_folder",
]  # fmt: skip

PREFIX, DAMAGED, STATE = "step-", "damaged-", "state.json"
NAME = rf"{PREFIX}\d+"
CHECKSUM, FILES = "checksum", "files"  # entries that `write_folder` adds to state.json

log = logging.getLogger(__name__)


@dataclass
class State:
    """The checked fields of `state.json`."""

    files: list[str]
    step: int = 0
    optimizer: dict[str, Any] | None = None
    loss_scale: dict[str, Any] | None = None
    history: str | None = None
    notes: dict[str, Any] | None = None


def write_folder(target: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    """Write a checkpoint: a folder that appears only when it is complete.

    If the folder exists, nothing is written: the same step of the same run has the same contents.

    Args:
        target: the folder, `step-...`.
        tensors: file name -> the tensors of that file, by name.
        state: what `state.json` holds; JSON values.

    Raises:
        TrainingError: the disk is full or fails; names the last complete checkpoint. Nothing half-written stays.
    """
    if target.exists():
        return
    state = {**state, FILES: sorted(tensors)}
    try:
        with whole.folder(target) as new:
            for name, group in tensors.items():
                save_checked(group, new / name, f"{target.name}/{name}")
            text = json.dumps({**state, CHECKSUM: state_checksum(state)}, indent=1)
            (new / STATE).write_text(text, encoding="utf-8")
    except WriteError as error:
        there = checkpoints(target.parent)
        size = sum(t.numel() * t.element_size() for group in tensors.values() for t in group.values())
        raise TrainingError(
            f"{error}. It needs {size / 1e6 + 1:.0f} MB on that disk, beside the checkpoints "
            f"that are there; last whole checkpoint: {there[-1] if there else 'none'}, from which the run resumes"
        ) from error


def state_checksum(state: dict[str, Any]) -> str:
    """A CRC-32 of all values, as JSON represents them: eight hexadecimal digits."""
    as_read = json.loads(json.dumps(state))  # JSON turns tuples into lists, and number keys into texts
    return f"{zlib.crc32(json.dumps(as_read, sort_keys=True).encode()):08x}"


def checkpoints(folder: Path) -> list[Path]:
    """The folders of the checkpoints in a folder, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir() and re.fullmatch(NAME, path.name))


def named(step: int) -> str:
    """The name of the folder of a checkpoint."""
    return f"{PREFIX}{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint, from its name."""
    return int(folder.name.removeprefix(PREFIX))


def prune(folder: Path, keep: int, save_every: int = 0, best: int = 0) -> None:
    """Remove all but the newest `keep` checkpoints, and temporary files of processes that were killed while writing.

    Checkpoints at multiples of `save_every`, if that is not 0, and of the step `best` stay too. A checkpoint is renamed
    before its files are removed, so that no incomplete one is ever found.
    """
    whole.sweep(folder)
    for old in checkpoints(folder)[:-keep]:
        if step_of(old) != best and (not save_every or step_of(old) % save_every):
            whole.remove(old)


def load(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Read a checkpoint that `write_folder` wrote, and verify its checksums.

    Returns:
        (tensors, state): file name -> tensors by name, and the contents of `state.json`.

    Raises:
        DamagedError: a file is missing, or its contents do not match its checksum.
        TrainingError: a file exists and cannot be opened.
    """
    try:
        state = read_json(folder / STATE, dict[str, Any], finite=False)
        check(state, State, str(folder / STATE))
        if strange := [name for name in state[FILES] if not re.fullmatch(r"\w+\.safetensors", name)]:
            raise DamagedError(f"{folder / STATE} names {shown(strange[0])}, which is no file of a checkpoint")
        if state.pop(CHECKSUM, None) != state_checksum(state):
            raise DamagedError(f"{folder / STATE} does not hold what was written into it")
        return {name: load_checked(folder / name, f"{folder.name}/{name}") for name in state.pop(FILES)}, state
    except (InputError, FileNotFoundError) as error:
        raise DamagedError(f"the checkpoint {folder} is damaged ({error})") from error
    except OSError as error:  # such as too many open files
        raise TrainingError(f"the checkpoint {folder} cannot be read: {error}") from error


Loaded = tuple[Path, dict[str, dict[str, Tensor]], dict[str, Any]]


def newest_whole(folder: Path) -> Loaded | None:
    """Load the newest checkpoint that is not damaged.

    Damaged newer ones are named in a warning and renamed (`damaged-...`), so that they are not tried again.

    Args:
        folder: the folder of the checkpoints.

    Returns:
        (its folder, tensors, state), see `load`; None if there are no checkpoints.

    Raises:
        TrainingError: there are checkpoints, but all are damaged; or see `load`.
    """
    damaged: list[tuple[Path, DamagedError]] = []
    for path in reversed(checkpoints(folder)):
        try:
            found = (path, *load(path))
        except DamagedError as error:
            damaged.append((path, error))
            continue
        for other, error in damaged:
            log.warning("%s; it is set aside as %s, and the run goes on from %s", error, set_aside(other), path)
        return found
    if damaged:
        reasons = "; ".join(str(error) for _, error in damaged)
        raise TrainingError(f"no checkpoint is whole: {reasons}. Remove {folder} to train from the start")
    return None


def set_aside(path: Path) -> Path:
    """Rename a damaged checkpoint so that it is no longer found; returns the new path."""
    to = path.with_name(DAMAGED + path.name)
    if to.exists():
        whole.remove(to)
    whole.move(path, to)
    return to


def restore(folder: Path, tensors: dict[str, Tensor], into: dict[str, Tensor]) -> None:
    """Copy the tensors of a checkpoint into a model's tensors. If any does not fit, nothing is changed.

    Args:
        folder: the checkpoint, for the message.
        tensors: the loaded tensors, by name.
        into: the tensors to overwrite, by name.

    Raises:
        InputError: names, shapes or dtypes differ, so the checkpoint is from another configuration; says which.
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
