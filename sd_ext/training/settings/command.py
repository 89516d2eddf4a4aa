"""The command line of a training script, made from its config class: each setting is a flag with one line of help.

CONFIG.toml             settings from a file (its table named like the script, or FILE.toml#table, or all of it), also
                        --config; a preset's name where the script has presets, and `preset = "name"` in the file
--learning-rate 1e-4    one flag per field
--override key=value    the same for scripts; overrides file and flags
--dry-run               print the settings, and what a run would do, and stop
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import keyword
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin

from sd_ext.declared import check, shown
from sd_ext.endings import run_to_end
from sd_ext.errors import InputError, UnknownNameError
from sd_ext.reading import read_toml
from sd_ext.training.settings.config import Config, Setting, check_names, every_setting

RECIPES = Path(__file__).parents[1] / "recipes"
C = TypeVar("C", bound=Config)

TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `InputError` on errors, instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise `InputError` with argparse's message."""
        raise InputError(f"{message}; --help lists the flags")


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


def parser(cls: type[Config], doc: str, prog: str | None = None) -> Parser:
    """The argument parser of a script.

    Args:
        cls: the script's config class.
        doc: the description that `--help` shows.
        prog: the name of the program in the help; None for the script's file name.
    """
    made = Parser(
        prog, description=doc, epilog=cls.epilog(), formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )  # fmt: skip
    presets = f", or a preset: {', '.join(cls.presets)}" if cls.presets else ""
    made.add_argument(
        "file", nargs="?", metavar="CONFIG.toml", help=f"settings from a file{presets}; flags win over it"
    )
    made.add_argument("--config", metavar="FILE.toml", help="the same")
    made.add_argument(
        "--override", metavar="key=value", action="append", default=[], help="one setting; overrides file and flags"
    )
    made.add_argument("--dry-run", action="store_true", help="print settings and plan, and stop")
    headings: dict[str, Any] = {}
    for name, each in every_setting(cls).items():
        if each.group not in headings:
            headings[each.group] = made.add_argument_group(each.heading)
        meta, default = each.meta, each.default
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        text = each.help + (f" ({', '.join(each.choices)})" if each.choices else "")
        switch: Any = {"nargs": "?", "const": "true"} if isinstance(default, bool) else {}
        headings[each.group].add_argument(
            flag(name), dest=name, default=None, metavar=meta["unit"] or "VALUE", **switch,
            help=(f"{text} [{shown}]" if shown != "" else text).replace("%", "%%"),
        )  # fmt: skip
    return made


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


def parse(cls: type[C], arguments: Sequence[str] | None, doc: str, prog: str | None = None) -> tuple[C, bool]:
    """Parse a command line. `--override` overrides flags, and flags override the settings file.

    Args:
        cls: the script's config class.
        arguments: the arguments; None for those of this process.
        doc, prog: as for `parser`.

    Returns:
        (config, whether `--dry-run` was given).

    Raises:
        InputError: see `make_config`; also if the settings file cannot be read.
    """
    flags, dry, file, path, overrides = read_flags(cls, arguments, doc, prog)
    if file and path:
        raise InputError(f"two files of settings: {file} and {path}; give one")
    source = file or path
    start, values = read_settings(cls, source) if source else (cls(), {})
    known = every_setting(cls)
    values |= {name: read_value(known[name], text, flag(name)) for name, text in flags.items()}
    pairs = [pair.partition("=") for pair in overrides]
    if malformed := [pair for pair in pairs if not pair[1]]:
        raise InputError(f"--override {malformed[0][0]}: write key=value")
    values |= converted(cls, {key.strip(): value for key, _, value in pairs}, "command line")
    return start.change(**values), dry


def read_flags(
    cls: type[Config], arguments: Sequence[str] | None, doc: str, prog: str | None
) -> tuple[dict[str, str], bool, str | None, str | None, list[str]]:
    """Split a command line into its parts, without converting values. Arguments as for `parse`.

    Returns:
        (text of each setting given as a flag, whether `--dry-run` was given, CONFIG.toml, `--config`, `--override`).

    Raises:
        InputError: a flag does not exist (suggests the closest) or lacks its value.
    """
    found, unknown = parser(cls, doc, prog).parse_known_args(arguments)
    if unknown:
        flags = ["--help", "--config", "--override", "--dry-run", *map(flag, every_setting(cls))]
        if unknown[0].startswith("-"):
            raise UnknownNameError("flag", unknown[0].partition("=")[0], flags)
        raise InputError(f"unexpected argument {unknown[0]!r}; give one CONFIG.toml, and settings as flags")
    flags = vars(found)
    dry, file, path, overrides = (flags.pop(name) for name in ("dry_run", "file", "config", "override"))
    flags = {name: value for name, value in flags.items() if value is not None}
    for name, value in flags.items():  # `--flip CONFIG.toml` is a switch and the file, not the switch's value
        switch = isinstance(every_setting(cls)[name].default, bool)
        if switch and not file and (value.endswith(".toml") or value in cls.presets):
            file, flags[name] = value, "true"
    return flags, dry, file, path, overrides


def describe(config: Config) -> str:
    """All settings as text, one a line: name, value, help, and a remark if the config has one (`Config.notes`)."""
    known, notes = every_setting(type(config)), config.notes()
    width = max(map(len, known))
    lines = []
    for name, value in config.values().items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        why = f" ({notes[name]})" if name in notes else ""
        lines.append(f"{name.rstrip('_'):<{width}}  {text!s:<28} {known[name].help}{why}")
    return "\n".join(lines)


def run_command(
    cls: type[Config], target: str, arguments: Sequence[str] | None, doc: str, prog: str | None = None
) -> None:
    """Parse a command line and run the script; on a dry run, print the settings and the plan instead.

    Args:
        cls: the script's config class.
        target: "module:function", which is imported after parsing and called with the config; its result is printed.
        arguments, doc, prog: as for `parse`.

    Raises:
        InputError: see `parse`.
    """
    config, dry = parse(cls, arguments, doc, prog)
    if dry:
        print(describe(config))
        if cls.plan:
            print()
            for line in resolve(cls.plan)(config):
                print(line, flush=True)
        return
    with terminated_like_ctrl_c():
        print(resolve(target)(config))


@contextlib.contextmanager
def terminated_like_ctrl_c() -> Iterator[None]:
    """A context in which SIGTERM raises `KeyboardInterrupt`, as Ctrl-C does, so that files are cleaned up."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # only the main thread may handle signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def resolve(target: str) -> Any:
    """Import the object that "module:name" names."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def main(cls: type[Config], target: str, doc: str | None) -> int:
    """Run a script with the arguments of this process; errors are printed in one line, without a traceback.

    Args:
        cls: the script's config class.
        target: "module:function", see `run_command`.
        doc: the script's docstring, shown by `--help`.

    Returns:
        The exit code: 0, 2 for bad input, 1 if the run stopped with an error, 130 for Ctrl-C.
    """

    def command() -> int:
        try:
            run_command(cls, target, None, doc or "")
        except KeyboardInterrupt as stop:
            print(str(stop) or "stopped", file=sys.stderr)
            return 130
        return 0

    return run_to_end(command, "error")
