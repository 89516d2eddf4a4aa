"""A point of a run: RUN is its newest checkpoint, RUN@STEP that of a step."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sd_ext.errors import DamagedError, InputError
from sd_ext.reading import read_json
from sd_ext.training.run import checkpoint

RECORD = "run.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """A checkpoint of a run.

    Args:
        run: the folder of the run.
        record: what its `run.json` holds.
        folder: the folder of the checkpoint.
        tensors: file name -> tensors by name.
        state: what the checkpoint's `state.json` holds.
    """

    run: Path
    record: dict[str, Any]
    folder: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """The number of steps done."""
        return self.state["step"]


def is_run(path: Path) -> bool:
    """Whether a folder is that of a run."""
    return (path / RECORD).is_file()


def split(source: str) -> tuple[Path, int | None]:
    """RUN or RUN@STEP as (folder, step or None). A folder whose own name ends in @ and a number is taken for itself."""
    run, at, step = source.rpartition("@")
    if at and step.isdecimal() and not Path(source).exists():
        return Path(run), int(step)
    return Path(source), None


def find_point(source: str) -> Point:
    """Load a checkpoint of a run. Nothing in the run's folder is changed.

    Args:
        source: RUN for its newest whole checkpoint, or RUN@STEP.

    Raises:
        InputError: there is no such run or step (says which there are), or the checkpoint is damaged.
    """
    run, step = split(source)
    if not is_run(run):
        raise InputError(f"{run} is no folder of a run: it has no {RECORD}")
    there = checkpoint.checkpoints(run / "checkpoints")
    steps = ", ".join(str(checkpoint.step_of(path)) for path in there) or "none"
    wanted = [path for path in there if step is None or checkpoint.step_of(path) == step]
    if not wanted:
        asked = "no checkpoint yet" if step is None else f"no checkpoint of step {step}, but of {steps}"
        raise InputError(f"{run} has {asked}; which are kept is said by checkpoint_every, keep and save_every")
    for path in reversed(wanted):
        try:
            tensors, state = checkpoint.load(path)
        except DamagedError as error:
            if path == wanted[0]:
                raise
            log.warning("%s; the one before is taken", error)
            continue
        return Point(run, read_json(run / RECORD, dict[str, Any]), path, tensors, state)
    raise AssertionError("the last either loads or raises")
