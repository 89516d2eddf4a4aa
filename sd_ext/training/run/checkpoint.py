"""Checkpoints that are whole or not there, and tell when they are damaged.

A checkpoint is a folder `step-00001500` of safetensors files and one JSON file, each with a checksum of its contents:

    model.safetensors      trained weights          ema.safetensors   their average
    optimizer.safetensors  its state's tensors      state.json        step, other optimizer state, loss scale

It appears all at once; older ones go only after that. No random state is stored because there is none: every draw at
step s comes from a generator seeded with (seed, s).
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
CHECKSUM, FILES = "checksum", "files"  # entries of the state that this file adds

log = logging.getLogger(__name__)


@dataclass
class State:
    """What `state.json` declares, whoever wrote it."""

    files: list[str]
    step: int = 0
    optimizer: dict[str, Any] | None = None
    loss_scale: dict[str, Any] | None = None
    history: str | None = None


def write_folder(target: Path, tensors: dict[str, dict[str, Tensor]], state: dict[str, Any]) -> None:
    """Write `{file name: tensors}` and `state.json` as one folder that appears all at once.

    A folder that is already there is left as it is: same step, same contents.

    Raises:
        TrainingError: the disk is full or fails; names the last whole checkpoint. Nothing half-written stays.
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
    """Eight digits that depend on every value, as JSON keeps them."""
    as_read = json.loads(json.dumps(state))  # lists for tuples, texts for keys that are numbers
    return f"{zlib.crc32(json.dumps(as_read, sort_keys=True).encode()):08x}"


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, each whole until it is gone, and what killed writers left."""
    whole.sweep(folder)
    for old in checkpoints(folder)[:-keep]:
        whole.remove(old)


def load(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `write_folder` wrote.

    Raises:
        DamagedError: a file holds something else, or is gone.
        TrainingError: a file is there and cannot be read.
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
    """The newest checkpoint that is not damaged, loaded; None where there is none at all.

    Newer ones, which are damaged, are named in a warning, and set aside under another name.

    Raises:
        TrainingError: there are checkpoints, and all are damaged; or see `load`.
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
    """Give a checkpoint a name under which it is no checkpoint any more."""
    to = path.with_name(DAMAGED + path.name)
    if to.exists():
        whole.remove(to)
    whole.move(path, to)
    return to


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
