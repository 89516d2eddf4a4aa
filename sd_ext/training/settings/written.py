"""Settings as people write them, in flags and TOML files, read as the values that a script's config has."""

from __future__ import annotations

import keyword
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

from sd_ext.declared import check, shown
from sd_ext.errors import InputError, UnknownNameError
from sd_ext.reading import read_toml
from sd_ext.training.settings.config import Config, Setting, check_names, every_setting

RECIPES = Path(__file__).parents[1] / "recipes"
C = TypeVar("C", bound=Config)

TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def convert(kind: Any, value: Any, name: str) -> Any:
    """Convert a flag's text or a TOML value to the type of a setting.

    Args:
        kind: the type: bool, int, float, str, or a tuple of one of them.
        value: the text or value; a tuple may be given as text with commas.
        name: the setting, for the message.

    Raises:
        InputError: the value is not of that type; names the setting.
    """
    try:
        if get_origin(kind) is tuple:
            several = [s.strip() for s in value.split(",") if s.strip()] if isinstance(value, str) else value
            items = list(several) if isinstance(several, (list, tuple)) else [several]
            return tuple(convert(get_args(kind)[0], item, name) for item in items)
        if kind is bool:
            if isinstance(value, bool):
                return value
            return TRUTH[str(value).lower()]
        if isinstance(value, bool) or (kind is int and isinstance(value, float)):
            raise ValueError
        if kind is str and (not isinstance(value, str) or "\0" in value):
            raise ValueError
        made = kind(value)
        if kind is int:
            check(made, int, name)  # refuses integers that need more than 64 bits
        return made
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        wanted = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, "a list")
        raise InputError(f"{name} is {shown(value)}; it must be {wanted}") from error


def make_config(cls: type[C], values: dict[str, Any], where: str) -> C:
    """Make a script's config from names and values as they are written in a file or on the command line.

    Args:
        cls: the script's config class.
        values: setting name, with - or _ -> the text of a flag, or a TOML value.
        where: the source of the values, for messages.

    Raises:
        InputError: an unknown name or a value that is not allowed; names the source.
    """
    return cls.of(**converted(cls, values, where))


def converted(cls: type[Config], values: dict[str, Any], where: str) -> dict[str, Any]:
    """Check the names of settings, write them with _, and convert the values to the settings' types.

    Arguments as for `make_config`.

    Raises:
        UnknownNameError: a name is no setting; suggests the closest.
        InputError: a value is of another type.
    """
    known, normal = every_setting(cls), {as_in_python(name): value for name, value in values.items()}
    for name, each in known.items():
        tables = each.meta["tables"]
        if tables and isinstance(normal.get(tables), list):
            normal[name] = normal.pop(tables)
    check_names(cls, normal, where)
    return {name: read_value(known[name], value, f"{where}: {name}") for name, value in normal.items()}


def read_value(setting: Setting, value: Any, where: str) -> Any:
    """The value of a setting from a flag's text or a TOML value.

    Raises:
        InputError: it is of another type; names the place.
    """
    read = setting.meta["read"]
    return read(value, where) if read else convert(setting.kind, value, where)


def as_in_python(name: str) -> str:
    """A setting's name as Python has it: "batch-size" -> "batch_size"; "from", a word of Python's own, -> "from_"."""
    name = name.replace("-", "_")
    return f"{name}_" if keyword.iskeyword(name) else name


def flag(name: str) -> str:
    """The command-line flag of a setting: "batch_size" -> "--batch-size", "from_" -> "--from"."""
    return "--" + name.rstrip("_").replace("_", "-")


def read_settings(cls: type[C], path: str) -> tuple[C, dict[str, Any]]:
    """Read a settings file or a preset.

    Args:
        cls: the script's config class.
        path: a TOML file, optionally with `#table`; or the name of a preset. A file may itself name a preset to start
            from (`preset = "name"`).

    Returns:
        (the config to start from: the preset's or the script's defaults, the values that the file sets).

    Raises:
        InputError: see `make_config`; also if the file cannot be read, the preset is unknown, or a setting may only
            be given on the command line.
    """
    if path in cls.presets:
        return preset_config(cls, path), {}
    if cls.presets and not Path(path.partition("#")[0]).exists() and not path.endswith(".toml"):
        raise UnknownNameError("file or preset", path, cls.presets)
    path, _, section = path.partition("#")
    values = read_table(cls, path, section)
    preset = values.pop("preset", None)
    if preset is not None and not cls.presets:
        raise InputError(f"{path}: this script has no presets; leave out preset")
    if preset is not None and preset not in list(cls.presets):
        raise UnknownNameError(f"preset in {path}:", preset, cls.presets)
    told = converted(cls, values, path)
    if refused := [name for name in told if not every_setting(cls)[name].meta["in_files"]]:
        raise InputError(f"{path}: {refused[0]} cannot stand in a file; give {flag(refused[0])} on the command line")
    return preset_config(cls, preset) if preset else cls(), told


def preset_config(cls: type[C], name: str) -> C:
    """The config of one of the script's presets."""
    path = str(RECIPES / cls.presets[name])
    return make_config(cls, read_table(cls, path, ""), path)


def read_table(cls: type[Config], path: str, section: str) -> dict[str, Any]:
    """Read the table of a TOML file that holds a script's settings.

    Args:
        cls: the script's config class.
        path: the file.
        section: the table to read; "" for the table named like the script (`cls.section`) or, if the file has no such
            table, the whole file.

    Raises:
        InputError: there is no such table, or there are settings outside of it, which would be ignored.
    """
    whole = read_toml(path)
    if section and section not in whole:
        raise InputError(f"{path} has no table [{section}]")
    name = section or (cls.section if cls.section in whole else "")
    if not name:
        return whole
    if not isinstance(whole[name], dict):
        raise InputError(f"{path}: {name} is {shown(whole[name])}; it must be a table [{name}]")
    if lost := [key for key, value in whole.items() if not isinstance(value, dict)]:
        raise InputError(f"{path}: {', '.join(lost)} above [{name}] would have no effect; write settings below it")
    return dict(whole[name])
