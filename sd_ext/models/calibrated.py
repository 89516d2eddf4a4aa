"""The sampler that comes with a model: `calibrated/scheduler_config.json` of a pipeline folder.

`sd-ext calibrate --model FOLDER --out FOLDER/calibrated` writes it. Diffusers reads past it: the pipeline's own
scheduler stays what it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..reading import read_json
from .folder import Folder
from .model import Model

FOLDER = "calibrated"


def calibrated_config(model: Model) -> Mapping[str, Any] | None:
    """The scheduler config of the sampler that was fitted to a model; None for models without one, and on the Hub.

    Raises:
        InputError: the file is not JSON that can be read.
    """
    path = model.root / FOLDER / "scheduler_config.json" if isinstance(model, Folder) else None
    return read_json(path, dict[str, Any]) if path is not None and path.is_file() else None
