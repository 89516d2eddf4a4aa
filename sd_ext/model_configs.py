"""Check the JSON files of a model's folder before any library builds a model from them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .declared import shown
from .errors import InputError, ModelError
from .plain_files import why_not
from .reading import read_json

MOST_LAYERS = 256  # of one kind in a config; a count of a million would keep a library building for hours
LONGEST = 60  # characters of a part's name, which is a folder's
MOST = 2**24  # any other whole number in a config: widths, vocabularies


def read_index(folder: Path) -> dict[str, Any]:
    """Read a pipeline's `model_index.json`: its settings, and [library, class] for each part.

    Args:
        folder: the pipeline's folder.

    Raises:
        ModelError: the file is missing or damaged, or a part's name is no plain name and could lead out of the folder.
    """
    path = folder / "model_index.json"
    index = read_json(path, dict[str, Any], error=ModelError)
    if wrong := [name for name in parts_in(index) if not name.isidentifier() or len(name) > LONGEST]:
        raise ModelError(f"{path}: {shown(wrong[0])} is no name of a part")
    return index


def parts_in(index: dict[str, Any]) -> list[str]:
    """The names of the parts that are present according to a `model_index.json`."""
    return [
        name
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and not name.startswith("_")
        if any(value) and all(each is None or isinstance(each, str) for each in value)
    ]


def read_config(path: Path) -> dict[str, Any]:
    """Read a part's config. Of a `config.json`, from which a network is built, the whole numbers must be plausible.

    Args:
        path: the file.

    Raises:
        ModelError: it is missing or damaged, or has more layers than `MOST_LAYERS` or a number above `MOST`.
    """
    config = read_json(path, dict[str, Any], finite=False, error=ModelError)  # Diffusers writes -Infinity
    for name, value in config.items() if path.name == "config.json" else ():
        most = MOST_LAYERS if "layer" in name else MOST
        if large := next((n for n in _whole_numbers(value) if abs(n) > most), None):
            raise ModelError(f"{path}: {shown(name)[1:-1]} holds {large}; no model has more than {most:,}")
    return config


def _whole_numbers(value: Any) -> Iterator[int]:
    """Yield every whole number in nested lists and objects."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _whole_numbers(item)


def check_plain(folder: Path) -> None:
    """Raise `ModelError` for a named pipe, device or socket in a model's folder; a library might wait for ever."""
    for path in (*folder.iterdir(), *folder.glob("*/*")):
        reason = why_not(path)
        if reason and path.exists() and not path.is_dir():
            raise ModelError(f"{path} {reason}; remove it")


class GuardedConfig:
    """Mixin, to stand before Diffusers' `ConfigMixin`: local config files are checked before Diffusers reads them."""

    config_name: str | None

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Load a config; arguments and result as in Diffusers.

        Raises:
            InputError: a local config file is damaged; see `sd_ext.reading`.
        """
        root, name = Path(pretrained_model_name_or_path), cls.config_name or ""
        places = (root, root / (kwargs.get("subfolder") or "") / name, root / name)
        local = next((path for path in places if os.path.lexists(path) and not path.is_dir()), None)
        if local is None:
            return super().load_config(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]
        read_json(local, dict[str, Any], finite=False)
        try:
            return super().load_config(pretrained_model_name_or_path, *args, **kwargs)  # type: ignore[misc]
        except OSError as error:  # such as a byte-order mark, which Diffusers does not read
            raise InputError(f"Diffusers cannot read {local}: {error}") from error
