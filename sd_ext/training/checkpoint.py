"""Checkpoints that are whole or not there.

A checkpoint is a folder `step-00001500` of safetensors files and one JSON file:

    model.safetensors      trained weights          ema.safetensors   their average
    optimizer.safetensors  AdamW's moments          state.json        step, settings, loss scale

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
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sd_ext.errors import TrainingError

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
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(PARTIAL + target.name)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    for name, group in tensors.items():
        save_file({key: value.detach().cpu().contiguous() for key, value in group.items()}, partial / name)
        flush(partial / name)
    (partial / "state.json").write_text(json.dumps(state, indent=1))
    flush(partial / "state.json")
    flush(partial)
    if target.exists():
        shutil.rmtree(partial)
        return
    partial.rename(target)
    flush(target.parent)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob(f"{PREFIX}*") if (p / "state.json").is_file())


def prune(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints, and what interrupted writes left behind."""
    for old in [*checkpoints(folder)[:-keep], *folder.glob(f"{PARTIAL}*")]:
        shutil.rmtree(old)


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str]) -> dict[str, Tensor]:
    """The optimizer's state under `<parameter name>|<state name>`."""
    return {
        f"{names[parameter]}|{key}": value  # type: ignore[index]
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, names: dict[nn.Parameter, str], tensors: dict[str, Tensor]
) -> None:
    """Undo `optimizer_tensors`.

    Moments are laid out in memory as their parameter is: fused AdamW walks both as flat arrays, so that moments in
    another layout would silently belong to other weights.
    """
    by_name: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        name, _, kind = key.rpartition("|")
        by_name.setdefault(name, {})[kind] = value
    packed = optimizer.state_dict()
    index = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    packed["state"] = {
        index[id(p)]: {
            kind: torch.empty_like(p, dtype=value.dtype).copy_(value) if value.shape == p.shape else value
            for kind, value in by_name[name].items()
        }
        for p, name in names.items()
        if name in by_name
    }
    optimizer.load_state_dict(packed)


def load(folder: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """What `write_folder` wrote.

    Raises:
        TrainingError: a file is damaged; names the folder to remove.
    """
    try:
        tensors = {p.name: load_file(p) for p in folder.glob("*.safetensors")}
        return tensors, json.loads((folder / "state.json").read_text())
    except Exception as error:
        raise TrainingError(f"checkpoint {folder} is damaged ({error}); remove it to use the one before") from error
