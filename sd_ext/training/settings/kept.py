"""All settings of a run in its folder, as a file that its script reads: `sd-ext train lora OUT/config.toml`."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

from sd_ext import whole
from sd_ext.errors import InputError
from sd_ext.reading import read_toml
from sd_ext.training.settings.config import Config, every_setting
from sd_ext.training.settings.written import converted

SETTINGS = "config.toml"
C = TypeVar("C", bound=Config)


def keep_settings(config: Config, path: Path) -> None:
    """Write all settings that may stand in a file.

    Args:
        config: the settings.
        path: the file; an existing one is replaced.
    """
    known = every_setting(type(config))
    lines = ["# All settings of this run, as they were when it last began.", f"[{config.section}]"]
    for name, value in config.values().items():
        unset = known[name].meta["tables"] and not value  # an empty list of tables cannot be read back
        if known[name].meta["in_files"] and not unset:
            lines.append(as_toml(name, value))
    whole.write_text(path, "\n".join(lines) + "\n")


def as_toml(name: str, value: Any) -> str:
    """A setting as a line of TOML; a comment for a text that is no Unicode, such as some files' names."""
    written = toml_value(value)
    if not written.isascii():
        try:
            written.encode()
        except UnicodeEncodeError:
            return f"# {name} is no text that this file could hold"
    return f"{name.rstrip('_')} = {written}".replace("\x7f", "\\u007f")


def toml_value(value: Any) -> str:
    """A value in TOML: text, number, truth, a list of them, or of tables, whose fields that are None are left out."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if is_dataclass(value):
        there = {field.name: getattr(value, field.name) for field in fields(value)}
        return f"{{{', '.join(f'{name} = {toml_value(each)}' for name, each in there.items() if each is not None)}}}"
    return json.dumps(value, ensure_ascii=False)


def kept_settings(cls: type[C], path: Path, **more: Any) -> C:
    """Read the settings that a run has kept.

    Args:
        cls: the script's config class.
        path: the file.
        more: settings to use in place of those in the file.

    Raises:
        InputError: there is no such file, it is a run of another script, or a setting is not allowed.
    """
    tables = read_toml(path)
    if list(tables) != [cls.section] or not isinstance(tables[cls.section], dict):
        raise InputError(f"{path} holds the settings of {', '.join(tables) or 'nothing'}, not of {cls.section}")
    return cls().change(**{**converted(cls, tables[cls.section], str(path)), **more})
