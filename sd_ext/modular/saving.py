"""Blocks and pipelines as folders that Diffusers loads by itself, with `trust_remote_code=True`.

Such a folder has the settings of the blocks, and a file of code that they are imported from. Ours says where the blocks
are, `from sd_ext.modular import ...`, and the settings say that this package is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .. import whole
from ..errors import InputError
from ..reading import read_json
from ..seams.diffusers.modular import HOME, Recorded


class Saved(Recorded):
    """Mixin for blocks of this package, which say that it is needed, and where they are."""


def save(pipe: Any, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Save a Modular pipeline with its components and blocks, or blocks alone.

        sd_ext.modular.save(pipe, "folder")
        pipe = ModularPipeline.from_pretrained("folder", trust_remote_code=True)
        pipe.load_components()

    Args:
        pipe: a Modular pipeline with blocks of this package, or such blocks.
        folder: where to; it must not exist, or be empty.
        overwrite: replace what is there.

    Returns:
        The folder.

    Raises:
        InputError: something else.
    """
    blocks: Any = pipe if isinstance(pipe, Saved) else getattr(pipe, "blocks", None)
    if not isinstance(blocks, Saved):
        raise InputError(
            f"save: {type(pipe).__name__} has no blocks of sd_ext.modular; its own save_pretrained is for it"
        )
    name = type(blocks).__name__
    if type(blocks).__module__ != HOME:
        raise InputError(f"save: {name} is a class of your own; `diffusers-cli custom_blocks` packs it with its code")
    with whole.folder(folder, overwrite) as new:
        if pipe is not blocks:
            pipe.save_pretrained(str(new), overwrite_modular_index=True)  # type: ignore[attr-defined]
            _point_to(Path(folder), new)
        blocks.save_pretrained(str(new))  # type: ignore[attr-defined]
        code = f'"""Blocks of sd_ext, which has to be installed."""\n\nfrom {HOME} import {name} as {name}\n'
        whole.write_text(new / "modular.py", code)
    return Path(folder)


def _point_to(folder: Path, new: Path) -> None:
    """Make the index of components name the folder that they will be in."""
    index = new / "modular_model_index.json"
    found = read_json(index, dict[str, Any], finite=False)
    for entry in found.values():
        if isinstance(entry, list) and isinstance(entry[-1], dict):
            spec = entry[-1]
            if spec.get("pretrained_model_name_or_path") == str(new):
                spec["pretrained_model_name_or_path"] = str(folder)
    whole.write_json(index, found, indent=2)
