"""Small things the training scripts share: loading models by folder, naming broken pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from sd_ext.errors import ModelError
from sd_ext.training.data import Pictures


def from_folder(cls: Any, folder: str, part: str) -> Any:
    """`cls.from_pretrained` on a model folder, or on the `part` of a pipeline folder or finished run.

    Raises:
        ModelError: nothing there that loads.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ModelError(f"no model folder at {folder}")
    for candidate in (root / part, root / "model" / part, root / "model", root):
        if (candidate / "config.json").is_file() or (candidate / "tokenizer_config.json").is_file():
            try:
                return cls.from_pretrained(candidate, local_files_only=True)
            except (OSError, ValueError, KeyError) as error:
                raise ModelError(f"{candidate} does not load as {cls.__name__}: {error}") from error
    raise ModelError(f"{folder} holds no {part} (no config.json there)")


def report_broken(pictures: Pictures) -> None:
    """Say which pictures were left out, and why."""
    if pictures.broken:
        console = Console(stderr=True)
        lines = [f"{len(pictures.broken)} pictures cannot be read and are left out:", *pictures.broken]
        console.print("\n  ".join(lines), highlight=False, markup=False)
