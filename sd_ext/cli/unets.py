"""`sd-ext unets`: list the options of the U-Net, or those that match a text."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InputError
from .silence import silence_torch

if TYPE_CHECKING:
    from ..unets.features.options import Option

WIDTH, NAME = 79, 24  # columns of a line, and of a name with what separates it from the rest


def unets(
    search: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Only those whose name or description holds every word of it.")
    ] = None,
) -> None:
    """List the options of the U-Net: speed, large pictures, guidance."""
    silence_torch()
    from ..unets.presets import PRESETS
    from ..unets.variant import FEATURES

    words, lines = (search or "").lower().split(), list[str]()
    for feature in FEATURES:
        rows = [
            row
            for name, option in feature.options.items()
            if all(word in f"{feature.name} {name} {option.help}".lower() for word in words)
            for row in _row(name, option)
        ]
        lines += ["", feature.name.upper(), *rows] if rows else []
    if not lines:
        raise InputError(f"no option of the U-Net matches {search!r}; sd-ext unets lists all")
    print("\n".join(lines[1:]))
    print('\nUse them as: sd-ext generate "red apple" --unet-option NAME=VALUE')
    print(f"Presets, as --unet NAME: {', '.join(PRESETS)}")


def _row(name: str, option: Option) -> Iterator[str]:
    """An option in lines that fit into 80 columns: its name, what it is, and its value when it is off."""
    text = f"{option.help} ({json.dumps(option.neutral)})"
    yield from textwrap.wrap(
        name.ljust(NAME - 1) + " " + text, WIDTH, subsequent_indent=" " * NAME, break_on_hyphens=False
    )
