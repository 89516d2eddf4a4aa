"""What a run starts from, the setting `from`: another run at one of its checkpoints, or a file.

`run.json` records it under "parent", with a digest, so that the run is resumed without the parent. A run that starts
from a run begins with that one's checkpoint and log, as links to the same files, and goes on with its own settings.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from sd_ext import whole
from sd_ext.checked import file_digest
from sd_ext.declared import shown
from sd_ext.errors import InputError
from sd_ext.plain_files import why_not
from sd_ext.reading import read_json
from sd_ext.training.run import checkpoint
from sd_ext.training.run.config import RunConfig
from sd_ext.training.run.history import read_history
from sd_ext.training.run.point import RECORD, find_point, is_run, split
from sd_ext.training.settings.config import every_setting
from sd_ext.training.settings.kept import SETTINGS, kept_settings

Parent = dict[str, Any]
START = "start.safetensors"


def parent_of(config: RunConfig, name: str) -> Parent | None:
    """The entry "parent" of `run.json`; that of the run's own record, if it is of the same parent.

    Args:
        config: the settings.
        name: the task's name.

    Returns:
        {"from": the setting, "weights": their SHA-256}, of a run with {"run": its folder, "step": the number of steps
        done} as well; None if the run starts from nothing.

    Raises:
        InputError: there is no such run, step or file; it is a run of something else, of other weights, or this one; or
            its steps are all that are to be done.
    """
    source, out = config.folder.from_, Path(config.folder.out)
    if not source:
        return None
    if is_run(out):
        known = read_json(out / RECORD, dict[str, Any]).get("parent")
        if isinstance(known, dict) and known.get("from") == source:
            return known
    run, _ = split(source)
    if not is_run(run):
        if reason := why_not(Path(source)):
            raise InputError(f"--from {source}: it is neither the folder of a run nor a file to read ({reason})")
        return {"from": source, "weights": file_digest(Path(source))}
    if run.resolve() == out.resolve():
        raise InputError(f"--from {source} is the folder of this run itself; choose another --out")
    if (kind := read_json(run / RECORD, dict[str, Any]).get("run")) != name:
        raise InputError(f"--from {source}: that is a run of a {kind}, this one of a {name}")
    point = find_point(source)
    step = point.step
    check_weights(config, source, run)
    if step >= config.loop.steps:
        raise InputError(f"--from {source} has done {step} steps, and steps is {config.loop.steps}: set more")
    return {"from": source, "weights": file_digest(point.folder / "model.safetensors"), "run": str(run), "step": step}


def check_weights(config: RunConfig, source: str, run: Path) -> None:
    """Raise `InputError` where a setting asks for other weights than a run's checkpoints have, or another strength."""
    if not (run / SETTINGS).exists():
        return
    cls = type(config)
    theirs, own = kept_settings(cls, run / SETTINGS).values(), config.values()
    for name, spec in every_setting(cls).items():
        if spec.meta["of_weights"] and own[name] != theirs[name]:
            raise InputError(
                f"--from {source}: {name} is {shown(theirs[name])} there and {shown(own[name])} here, and a checkpoint "
                "goes on with what it was trained with; a run of other adapters starts from a LoRA: sd-ext train "
                "export, then --from its file"
            )


def inherit(parent: Parent, folder: Path) -> None:
    """Give a new run its parent's checkpoint and the log up to it; does nothing once it has a checkpoint of its own.

    Args:
        parent: the entry "parent" of the run's record.
        folder: the run's folder.

    Raises:
        InputError: the parent is gone or has changed since it was recorded.
    """
    if "step" not in parent or checkpoint.checkpoints(folder / "checkpoints"):
        return
    run, step = Path(parent["run"]), parent["step"]
    found = find_point(f"{run}@{step}").folder
    if file_digest(found / "model.safetensors") != parent["weights"]:
        raise InputError(f"{found} has changed since {folder} was begun from it; choose another --out")
    entries = [entry for entry in read_history(run / "history.jsonl") if entry["step"] <= step]
    whole.write_text(folder / "history.jsonl", "".join(json.dumps(entry) + "\n" for entry in entries))
    if (run / START).exists():
        with whole.file(folder / START) as new:
            link_or_copy(run / START, new)
    with whole.folder(folder / "checkpoints" / found.name) as new:
        for path in sorted(found.iterdir()):
            link_or_copy(path, new / path.name)


def link_or_copy(path: Path, new: Path) -> None:
    """Make `new` the same file as `path`, which nothing ever changes in place; a copy on disks without links."""
    try:
        os.link(path, new)
    except OSError:
        shutil.copyfile(path, new)
