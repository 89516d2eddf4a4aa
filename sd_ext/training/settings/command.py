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
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

from sd_ext.endings import run_to_end
from sd_ext.errors import InputError, UnknownNameError
from sd_ext.training.settings.config import Config, every_setting
from sd_ext.training.settings.idle import idle
from sd_ext.training.settings.written import C, converted, flag, read_settings, read_value

log = logging.getLogger(__name__)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises `InputError` on errors, instead of printing its usage and exiting."""

    def error(self, message: str) -> NoReturn:
        """Raise `InputError` with argparse's message."""
        raise InputError(f"{message}; --help lists the flags")


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


def parse(cls: type[C], arguments: Sequence[str] | None, doc: str, prog: str | None = None) -> tuple[C, bool]:
    """Parse a command line. `--override` overrides flags, and flags override the settings file.

    Args:
        cls: the script's config class.
        arguments: the arguments; None for those of this process.
        doc, prog: as for `parser`.

    Returns:
        (config, whether `--dry-run` was given). What was given and changes nothing is logged, see `idle`.

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
    config = start.change(**values)
    for sentence in idle(config.values(), values, cls().values()):
        log.warning("%s", sentence)
    return config, dry


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
    from sd_ext.seams.less import import_less  # imports torch

    import_less()
    if dry:
        lines = list(resolve(cls.plan)(config)) if cls.plan else []  # what is wrong is said before anything else
        print(describe(config))
        if lines:
            print("\n".join(["", *lines]), flush=True)
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
