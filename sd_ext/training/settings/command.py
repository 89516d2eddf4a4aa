"""From a settings dataclass to a command line: one field, one flag, one line of help.

CONFIG.toml             settings from a file (its table named like the script, or FILE.toml#table, or all of it), also
                        --config; a preset's name where the script has presets, and `preset = "name"` in the file
--learning-rate 1e-4    one flag per field
--override key=value    the same for scripts; last word
--dry-run               print the settings, and what a run would do, and stop
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from sd_ext.errors import InputError, SdExtError, UnknownNameError
from sd_ext.training.settings import RunConfig
from sd_ext.training.settings.toml_file import read_toml

RECIPES = Path(__file__).parents[1] / "recipes"
C = TypeVar("C", bound=RunConfig)


TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class Parser(argparse.ArgumentParser):
    """One that raises `InputError` in place of printing its usage and leaving, and knows its flags."""

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        action = super().add_argument(*args, **kwargs)
        self.flags = [*getattr(self, "flags", ()), *action.option_strings]
        return action

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help lists the flags")


def convert(kind: Any, value: Any, name: str) -> Any:
    """A value of the field's type from a flag's text or a TOML value.

    Raises:
        InputError: it is not of that type; names the setting.
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
        if kind is str and not isinstance(value, str):
            raise ValueError
        return kind(value)
    except (TypeError, ValueError, KeyError) as error:
        shown = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}.get(kind, "a list")
        raise InputError(f"{name} is {value!r}; it must be {shown}") from error


def make_config(cls: type[C], values: dict[str, Any], where: str) -> C:
    """A settings object from names and values; names may use - or _.

    Raises:
        InputError: an unknown name or an impossible value; says where it came from.
    """
    hints, normal = get_type_hints(cls), known_names(cls, values, where)
    return cls(**{name: convert(hints[name], value, f"{where}: {name}") for name, value in normal.items()})


def parser(cls: type[RunConfig], doc: str, prog: str | None = None) -> Parser:
    """The argparse parser of a settings class."""
    made = Parser(
        prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )  # fmt: skip
    presets = f", or a preset: {', '.join(cls.presets)}" if cls.presets else ""
    made.add_argument(
        "file", nargs="?", metavar="CONFIG.toml", help=f"settings from a file{presets}; flags win over it"
    )
    made.add_argument("--config", metavar="FILE.toml", help="the same")
    made.add_argument("--override", metavar="key=value", action="append", default=[], help="one setting; last word")
    made.add_argument("--dry-run", action="store_true", help="print settings and plan, and stop")
    for spec in fields(cls):
        meta, default = spec.metadata, spec.default
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        text = meta["help"] + (f" ({', '.join(meta['choices'])})" if meta["choices"] else "")
        switch: Any = {"nargs": "?", "const": "true"} if isinstance(default, bool) else {}
        made.add_argument(
            "--" + spec.name.replace("_", "-"), default=None, metavar=meta["unit"] or "VALUE", **switch,
            help=(f"{text} [{shown}]" if shown != "" else text).replace("%", "%%"),
        )  # fmt: skip
    return made


def read_settings(cls: type[RunConfig], path: str) -> dict[str, Any]:
    """Names and values of a file, over those of the preset it names; or of a preset.

    Raises:
        InputError: see `make_config`; also a file that cannot be read, or an unknown preset.
    """
    if path in cls.presets:
        return read_settings(cls, str(RECIPES / cls.presets[path]))
    if cls.presets and not Path(path.partition("#")[0]).exists() and not path.endswith(".toml"):
        raise UnknownNameError("file or preset", path, cls.presets)
    path, _, section = path.partition("#")
    given = read_table(cls, path, section)
    base, preset = {}, given.pop("preset", None)
    if preset is not None:
        if not cls.presets:
            raise InputError(f"{path}: this script has no presets; leave out preset")
        if preset not in list(cls.presets):
            raise UnknownNameError(f"preset in {path}:", preset, cls.presets)
        base = read_settings(cls, preset)
    hints, names = get_type_hints(cls), known_names(cls, given, path)
    return base | {name: convert(hints[name], value, f"{path}: {name}") for name, value in names.items()}


def read_table(cls: type[RunConfig], path: str, section: str) -> dict[str, Any]:
    """The table of a file that holds the settings: the one asked for, the script's own, or all of the file.

    Raises:
        InputError: no such table, or settings beside it, which would be lost.
    """
    whole = read_toml(path)
    if section and section not in whole:
        raise InputError(f"{path} has no table [{section}]")
    name = section or (cls.section if cls.section in whole else "")
    if not name:
        return whole
    if not isinstance(whole[name], dict):
        raise InputError(f"{path}: {name} is {whole[name]!r}; it must be a table [{name}]")
    if lost := [key for key, value in whole.items() if not isinstance(value, dict)]:
        raise InputError(f"{path}: {', '.join(lost)} above [{name}] would have no effect; write settings below it")
    return dict(whole[name])


def known_names(cls: type[RunConfig], values: dict[str, Any], where: str) -> dict[str, Any]:
    """The same with _ for -.

    Raises:
        UnknownNameError: a name that is no setting; gives the closest.
    """
    known = {spec.name for spec in fields(cls)}
    normal = {name.replace("-", "_"): value for name, value in values.items()}
    if unknown := sorted(set(normal) - known):
        raise UnknownNameError(f"setting in {where}:", unknown[0], known)
    return normal


def parse(cls: type[C], arguments: Sequence[str] | None, doc: str, prog: str | None = None) -> tuple[C, bool]:
    """(settings, whether it is a dry run) from a command line.

    Raises:
        InputError: see `make_config`; also a settings file that cannot be read.
    """
    given, dry, file, path, overrides = read_flags(cls, arguments, doc, prog)
    if file and path:
        raise InputError(f"two files of settings: {file} and {path}; give one")
    hints = get_type_hints(cls)
    source = file or path
    values = read_settings(cls, source) if source else {}
    values |= {name: convert(hints[name], value, f"--{name.replace('_', '-')}") for name, value in given.items()}
    pairs = [pair.partition("=") for pair in overrides]
    if malformed := [p for p in pairs if not p[1]]:
        raise InputError(f"--override {malformed[0][0]}: write key=value")
    values |= {key.strip().replace("-", "_"): value for key, _, value in pairs}
    return make_config(cls, values, "command line"), dry


def read_flags(
    cls: type[RunConfig], arguments: Sequence[str] | None, doc: str, prog: str | None
) -> tuple[dict[str, str], bool, str | None, str | None, list[str]]:
    """(settings given as flags, dry run, CONFIG.toml, --config, --override) as they stand.

    Raises:
        InputError: a flag that does not exist (names the closest), or without its value.
    """
    made = parser(cls, doc, prog)
    found, unknown = made.parse_known_args(arguments)
    if unknown:
        if unknown[0].startswith("-"):
            raise UnknownNameError("flag", unknown[0].partition("=")[0], made.flags)
        raise InputError(f"unexpected argument {unknown[0]!r}; give one CONFIG.toml, and settings as flags")
    given = vars(found)
    dry, file, path, overrides = (given.pop(name) for name in ("dry_run", "file", "config", "override"))
    given = {name: value for name, value in given.items() if value is not None}
    for name, value in given.items():  # `--flip CONFIG.toml` is a switch and the file, not the switch's value
        if isinstance(getattr(cls, name), bool) and not file and (value.endswith(".toml") or value in cls.presets):
            file, given[name] = value, "true"
    return given, dry, file, path, overrides


def describe(config: RunConfig) -> str:
    """The settings, one a line."""
    width = max(len(spec.name) for spec in fields(config))
    lines = []
    for spec in fields(config):
        value = getattr(config, spec.name)
        text = ",".join(map(str, value)) if isinstance(value, tuple) else value
        lines.append(f"{spec.name:<{width}}  {text!s:<28} {spec.metadata['help']}")
    return "\n".join(lines)


def run_command(
    cls: type[RunConfig], target: str, arguments: Sequence[str] | None, doc: str, prog: str | None = None
) -> None:
    """Parse, then run `module:function` with the settings (imported only now), or print them on a dry run."""
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
    """Within the block SIGTERM is Ctrl-C, so that what a run prepares is left tidy too."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not in the main thread: signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def resolve(target: str) -> Any:
    """What "module:name" means, imported now."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def main(cls: type[RunConfig], target: str, doc: str | None) -> int:
    """The exit code of a script: 0, 2 for bad input, 1 for a run that stopped, 130 for Ctrl-C; no traceback."""
    try:
        run_command(cls, target, None, doc or "")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SdExtError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return 130
    return 0
