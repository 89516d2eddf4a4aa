"""Write a model, changed or not, as a pipeline folder or as a single file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from .. import whole
from ..errors import InputError
from .checkpoint import Checkpoint
from .folder import INDEX
from .model import Change, Model, Stored
from .to_file import write_file

log = logging.getLogger(__name__)


def is_file(out: Path) -> bool:
    """Whether a model that is written to `out` becomes a single file."""
    return out.suffix.lower() == ".safetensors"


def check_out(model: Model, out: Path, overwrite: bool = False) -> bool:
    """Check that a model can be written to `out`; returns whether something there is replaced.

    Args:
        model: the model.
        out: a folder, or a `.safetensors` file.
        overwrite: replace a pipeline folder or, for a file, a file.

    Raises:
        InputError: something is there.
        ModelError: it is, lies in or lies around the model's own place.
    """
    whole.recovered(out)
    replaces = overwrite and (out.is_file() if is_file(out) else (out / INDEX).is_file())
    if out.exists() and not replaces:
        raise InputError(f"{out} exists; choose another {'file' if is_file(out) else 'folder'}")
    model.check_apart(out)
    return replaces


def unchanged(stored: Stored) -> dict:
    """A `Change` that changes nothing."""
    return {}


def write_model(
    model: Model, out: Path, parts: Sequence[str] = (), change: Change = unchanged, overwrite: bool = False
) -> None:
    """Write a model to a new place. It appears completely or not at all. What is left out is logged, as a warning.

    Args:
        model: the model.
        out: a `.safetensors` file, which gets the original layout (see `to_file`), or a folder.
        parts: those that may change.
        change: see `Model.write_changed`.
        overwrite: see `check_out`.

    Raises:
        InputError: `out` exists, or the model does not fit; nothing is written.
        WriteError: the disk is full or fails.
    """
    replaces = check_out(model, out, overwrite)
    if is_file(out):
        with whole.file(out, overwrite=replaces) as new:
            notes = write_file(model, new, parts, change)
    else:
        with whole.folder(out, overwrite=replaces) as new:
            model.write_changed(new, parts, change)
        notes = model.notes if isinstance(model, Checkpoint) else []
    for note in notes:
        log.warning("%s: %s", model.name, note)
