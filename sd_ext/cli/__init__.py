"""The `sd-ext` command.

No module here imports torch at its top level, so that `sd-ext --help` is quick and wrong arguments are refused before
anything slow begins. An `InputError` raised anywhere becomes one sentence on stderr and exit code 2.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from .. import __version__
from ..endings import collect_seldom, run_to_end
from ..errors import InputError
from . import calibrate, compare, convert, generate, info, publish, samplers, train, ui, unets, verify, words
from .silence import silence
from .usage import UNREADABLE, in_one_sentence, is_help

app = typer.Typer(
    name="sd-ext",
    help="Stable Diffusion with Diffusers: draw pictures, choose samplers, train.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(generate.generate)
app.command()(compare.compare)
app.command()(ui.ui)
app.command()(words.words)
app.command()(calibrate.calibrate)
app.command()(samplers.samplers)
app.command()(unets.unets)
app.command()(info.info)
app.command()(verify.verify)
app.add_typer(train.app, name="train")
app.add_typer(convert.app, name="convert")
app.add_typer(publish.app, name="publish")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"sd_ext {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: the command line without the program's name; None means `sys.argv`.

    Returns:
        The exit code: 0 done, 1 failed, 2 input that cannot work, 130 interrupted.
    """
    if arguments is None:
        collect_seldom()
    return run_to_end(lambda: _run(None if arguments is None else list(arguments)), "sd-ext")


def _run(arguments: list[str] | None) -> int | None:
    """Run the command. Raises `InputError` for a command line that cannot be read."""
    with silence():
        try:
            code = app(args=arguments, prog_name="sd-ext", standalone_mode=False)
        except typer.Abort:
            raise KeyboardInterrupt from None
        except UNREADABLE as error:
            if is_help(error):
                print(getattr(error, "message", ""), end="", file=sys.stderr)
                return 2
            raise InputError(in_one_sentence(error)) from None
    return code if isinstance(code, int) else None
