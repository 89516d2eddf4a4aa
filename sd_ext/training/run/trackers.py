"""TensorBoard and W&B: the run's settings, metrics and previews, in files inside the run's folder.

OUT/logs/events...      TensorBoard: `tensorboard --logdir OUT`, or a folder of runs
OUT/logs/wandb/         W&B; with WANDB_MODE=offline it stays there, for `wandb sync`
OUT/logs/wandb.id       the run on W&B that a resumed run goes on with
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from sd_ext import whole
from sd_ext.plain_files import read_text
from sd_ext.training.run.config import RunConfig
from sd_ext.training.settings.written import flag

FOLDER = "logs"  # also the name that accelerate's TensorBoard tracker writes under


def begin(accelerator: Accelerator, config: RunConfig, step: int) -> None:
    """Open the tracker of the settings, and log all settings.

    Args:
        accelerator: accelerate's device and trackers.
        config: all settings.
        step: the step that the run begins at.
    """
    folder, settings = Path(config.folder.out), plain(config)
    if config.folder.tracker != "wandb" or not accelerator.log_with:
        accelerator.init_trackers(FOLDER)
        for tracker in accelerator.trackers:
            tracker.log({"settings": as_table(settings)}, step=step)
        return
    options: dict[str, Any] = {"name": config.folder.run_name or folder.resolve().name, "dir": str(folder / FOLDER)}
    if accelerator.is_main_process:
        options |= {"id": identity(folder / FOLDER / "wandb.id"), "resume": "allow"}
    with inside(folder / FOLDER / "wandb"):
        accelerator.init_trackers(config.folder.project, settings, {"wandb": options})


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """A context in which W&B keeps logs of its own in the folder, and not in the user's, unless that is set already."""
    mine = {name: str(folder) for name in ("WANDB_CACHE_DIR", "WANDB_DATA_DIR") if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            del os.environ[name]


def identity(path: Path) -> str:
    """The id of the run on W&B, from its file, which the first call writes."""
    if not path.is_file():
        whole.write_text(path, f"{uuid.uuid4().hex}\n")
    return read_text(path).strip()


def plain(config: RunConfig) -> dict[str, Any]:
    """All settings as numbers and texts, which every tracker takes."""
    values = {name.rstrip("_"): value for name, value in config.values().items()}
    return {
        name: value if isinstance(value, (bool, int, float, str)) else ", ".join(map(str, value))
        for name, value in values.items()
    }


def as_table(settings: dict[str, Any]) -> str:
    """Settings as a table in Markdown, which TensorBoard shows under "text"."""
    rows = [f"| `{flag(name)}` | {str(value).replace('|', chr(92) + '|')} |" for name, value in settings.items()]
    return "\n".join(["| setting | |", "|---|---|", *rows])


def log_preview(accelerator: Accelerator, sheet: Image.Image, step: int) -> None:
    """Send a contact sheet to the trackers that take pictures."""
    for tracker in accelerator.trackers:
        if (name := tracker.name) in ("tensorboard", "wandb"):
            options = {"dataformats": "NHWC"} if name == "tensorboard" else {}
            picture: Any = np.asarray(sheet)[None] if name == "tensorboard" else [sheet]
            tracker.log_images({"preview": picture}, step=step, **options)  # type: ignore[attr-defined]
