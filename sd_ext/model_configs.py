"""The JSON of a model's folder, judged before any library builds a model from it."""

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
MOST = 2**24  # any other whole number in a config: widths, vocabularies


def read_index(folder: Path) -> dict[str, Any]:
    """A pipeline's `model_index.json`: settings, and for each part a library and a class.

    Raises:
        ModelError: it is not there or damaged, or a part's name leads out of the folder.
    """
    path = folder / "model_index.json"
    index = read_json(path, dict[str, Any], error=ModelError)
    if wrong := next((name for name in parts_in(index) if not name.isidentifier()), None):
        raise ModelError(f"{path}: {shown(wrong)} is no name of a part")
    return index


def parts_in(index: dict[str, Any]) -> list[str]:
    """The names of the parts that an index says are there."""
    return [
        name
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and not name.startswith("_")
        if any(value) and all(each is None or isinstance(each, str) for each in value)
    ]


def read_config(path: Path) -> dict[str, Any]:
    """The config of a part: an object, and where a network is made from it one of moderate numbers.

    Raises:
        ModelError: it is not there or damaged, or holds numbers that no model has.
    """
    config = read_json(path, dict[str, Any], finite=False, error=ModelError)  # Diffusers writes -Infinity
    for name, value in config.items() if path.name == "config.json" else ():
        most = MOST_LAYERS if "layer" in name else MOST
        if large := next((n for n in _whole_numbers(value) if abs(n) > most), None):
            raise ModelError(f"{path}: {shown(name)[1:-1]} holds {large}; no model has more than {most:,}")
    return config


def _whole_numbers(value: Any) -> Iterator[int]:
    if isinstance(value, int):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _whole_numbers(item)


def check_plain(folder: Path) -> None:
    """Raise `ModelError` for a pipe, device or socket among the files that a library would open."""
    for path in (*folder.iterdir(), *folder.glob("*/*")):
        reason = why_not(path)
        if reason and path.exists() and not path.is_dir():
            raise ModelError(f"{path} {reason}; remove it")


class GuardedConfig:
    """Mix in before Diffusers' `ConfigMixin`: the config of a local folder is judged before Diffusers reads it."""

    config_name: str | None

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As in Diffusers.

        Raises:
            InputError: a local config that is damaged; see `sd_ext.reading`.
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
