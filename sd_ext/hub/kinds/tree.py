"""Copy the files of a model that may be published, by their names, and tell which were left out."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ... import whole
from ...errors import InputError
from ...model_configs import read_config
from ...models import PICKLES
from ..content import plain_source

WEIGHTS = re.compile(r"(model|pytorch_model|diffusion_pytorch_model)(\.\w+)?(-\d{5}-of-\d{5})?(\.\w+)?\.safetensors")
INDEX = re.compile(r"(model|pytorch_model|diffusion_pytorch_model)(\.\w+)?\.safetensors(\.\w+)?\.index\.json")
CONFIGS = {"config.json", "scheduler_config.json", "preprocessor_config.json", "tokenizer_config.json"}
TOKENS = {"vocab.json", "merges.txt", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "spiece.model"}
PRIVATE = ("_name_or_path",)  # entries of a config that name a place on the machine that wrote it


def copy_part(source: Path, new: Path, weights: bool = True) -> Iterator[str]:
    """Copy one part of a model.

    Args:
        source: its folder.
        new: where to; made if it is not there.
        weights: whether weights are copied too.

    Yields:
        The names of the files that were copied.

    Raises:
        InputError: a file is a link, or a config cannot be read.
    """
    new.mkdir(exist_ok=True)
    for path in sorted(source.iterdir()):
        name = path.name
        if not may_go(name) or (not weights and (WEIGHTS.fullmatch(name) or INDEX.fullmatch(name))):
            continue
        plain_source(path)
        if name in CONFIGS:
            whole.write_json(new / name, cleared(read_config(path)), indent=2)
        else:
            shutil.copyfile(path, new / name)
        yield name


def may_go(name: str) -> bool:
    """Whether a file of this name in a part's folder is published."""
    return name in CONFIGS or name in TOKENS or bool(WEIGHTS.fullmatch(name) or INDEX.fullmatch(name))


def cleared(config: dict[str, Any]) -> dict[str, Any]:
    """A config without the entries that name a place."""
    return {name: value for name, value in config.items() if name not in PRIVATE}


def check_weights(folder: Path, part: str) -> None:
    """Raise `InputError` if a part with a network has no safetensors weights: pickles are never published."""
    if any(WEIGHTS.fullmatch(path.name) for path in folder.iterdir()):
        return
    pickled = next((path.name for path in folder.iterdir() if path.suffix in PICKLES), None)
    has = f"only {pickled}, which is a pickle and can run code; save it as safetensors" if pickled else "no weights"
    raise InputError(f"{part} in {folder.parent} has {has}")


def others(source: Path, taken: set[str]) -> list[str]:
    """The files below a folder that were not taken, by their names relative to it; links are not followed."""
    found = (path for path in sorted(source.rglob("*")) if path.is_symlink() or path.is_file())
    return [name for path in found if (name := path.relative_to(source).as_posix()) not in taken]
