"""The folder of a run, and the record of the run's settings in it (`run.json`)."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sd_ext import whole
from sd_ext.declared import shown
from sd_ext.errors import InputError
from sd_ext.held import held
from sd_ext.reading import read_json
from sd_ext.training.run.config import RunConfig
from sd_ext.training.run.parent import parent_of
from sd_ext.training.run.point import RECORD
from sd_ext.training.run.result import sums_file

LOCK = "run.lock"

log = logging.getLogger(__name__)


def check_folder(config: RunConfig, name: str, parts: dict[str, str] | None = None) -> tuple[Path, dict[str, Any]]:
    """Check that a run can use its folder: it is new, or holds the same run. Nothing is written.

    Args:
        config: the settings.
        name: the task's name.
        parts: the task's `parts`: digests of what the run depends on beside its settings.

    Returns:
        (the folder, the record of the settings that `run.json` must hold).

    Raises:
        InputError: the folder holds something else, or a run with other settings or data (names them), or cannot be
            written to.
    """
    if not config.folder.out:
        raise InputError("no folder for the run: give --out DIR")
    folder, settings = Path(config.folder.out), {"run": name, **config.result_settings(), **(parts or {})}
    settings["parent"] = parent_of(config, name)
    if (folder / RECORD).is_file():
        compare(folder, settings)
        return folder, settings
    if folder.exists() and not is_fresh(folder):
        raise InputError(f"{folder} exists and is not a run of this script; choose another --out")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {folder}: {there} is no folder that can be written; choose another --out")
    return folder, settings


def is_fresh(folder: Path) -> bool:
    """Whether a folder is empty, except for what a run that was killed while it opened the folder has left."""
    return folder.is_dir() and all(whole.is_temporary(path.name) or path.name == LOCK for path in folder.iterdir())


def compare(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Compare the folder's record with the settings that it is to hold.

    Returns:
        The record.

    Raises:
        InputError: settings have changed that may not change in place; the message lists them.
    """
    try:
        before = read_json(folder / RECORD, dict[str, Any])
    except InputError as error:
        raise InputError(f"{error}; choose another --out") from error
    differing = [key for key in settings if before.get(key) != settings.get(key)]
    if refused := [key for key in differing if key not in IN_PLACE or not IN_PLACE[key](before, settings)]:
        changes = ", ".join(f"{key} {shown(before.get(key))} -> {shown(settings.get(key))}" for key in refused)
        raise InputError(
            f"{folder} holds a run with other settings ({changes}); choose another --out, and --from {folder} to go on "
            "from this one"
        )
    return before


def _raised(before: dict[str, Any], after: dict[str, Any]) -> bool:
    steady = after["lr_schedule"] in ("constant", "inverse_sqrt")
    return steady and all(
        isinstance(before.get(key), int) and before[key] <= after[key] for key in ("steps", "epochs") if key in after
    )


def _same_product(before: dict[str, Any], after: dict[str, Any]) -> bool:
    try:
        return before["batch_size"] * before["accumulation"] == after["batch_size"] * after["accumulation"]
    except (KeyError, TypeError):
        return False


IN_PLACE: dict[str, Callable[[dict[str, Any], dict[str, Any]], bool]] = {
    "steps": _raised,
    "epochs": _raised,
    "batch_size": _same_product,
    "accumulation": _same_product,
}
"""Setting -> whether it may change in a folder, given the record before and after; `setting` says the same in words."""


@contextlib.contextmanager
def alone(config: RunConfig, name: str, parts: dict[str, str], first: bool) -> Iterator[None]:
    """A context in which no other run uses the folder; the lock is gone with the process that holds it.

    Args:
        config, name, parts: as for `check_folder`.
        first: whether this is the run's first process, which holds the lock for all.

    Raises:
        InputError: another process trains in the folder; or see `check_folder`.
    """
    if not first:
        yield
        return
    folder, _ = check_folder(config, name, parts)
    with held(folder / LOCK, "trains"):
        yield


def open_run(config: RunConfig, name: str, parts: dict[str, str] | None = None) -> Path:
    """Open the run's folder: check it, remove temporary files of killed runs, write the record if it is new or changed.

    If there are more steps than before, a result of fewer is kept under another name. Arguments as for `check_folder`.

    Returns:
        The folder.

    Raises:
        InputError: see `check_folder`.
        WriteError: the record cannot be written.
    """
    folder, settings = check_folder(config, name, parts)
    whole.sweep(folder)
    before = compare(folder, settings) if (folder / RECORD).is_file() else None
    if before is not None and before["steps"] != settings["steps"]:
        set_result_aside(folder / "model", before["steps"])
    if before != settings:
        whole.write_json(folder / RECORD, settings)
    return folder


def set_result_aside(result: Path, steps: int) -> None:
    """Rename the result of a run that is to go on; does nothing if there is none."""
    if not result.exists():
        return
    to = result.with_name(f"{result.name}-{steps:08d}")
    if sums_file(result).exists():
        whole.remove(sums_file(result))
    whole.move(result, to)
    log.warning("the result of %s steps is now %s; the run goes on", steps, to)
