"""`sd-ext info`: how a picture was made, and the command that makes it again; or what a file of weights is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError, UnknownNameError, printable
from ..models import describe, tell
from ..models.edit import ENTRIES, edit_header
from .pictures import read_told
from .shells import pasted

WRITE = "write NAME=TEXT, such as title=Mine"


def info(
    picture: Annotated[Path, typer.Argument(metavar="FILE", help="A PNG, JPEG, WebP or .safetensors file.")],
    more: Annotated[list[str] | None, typer.Argument(metavar="[NAME=TEXT]...", help="More of --edit.")] = None,
    edit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=TEXT", help=f"Change what a .safetensors file says: {', '.join(ENTRIES)}."),
    ] = None,
) -> None:
    """Print how a picture was made, by this or another program; or what a .safetensors file is."""
    if more and not edit:
        raise InputError(f"{more[0]!r} is one file too many; only with --edit more may follow")
    if picture.suffix.lower() == ".safetensors":
        if edit:
            edit_header(picture, _changes([*edit, *(more or [])]))
        show(of_weights(picture))
        return
    if edit:
        raise InputError(f"{picture}: only what .safetensors files say can be changed")
    told = read_told(picture)
    for name, value in told.shown.items():
        parts = [f"{key} {each}" for key, each in value.items()] if isinstance(value, Mapping) else [str(value)]
        print(f"{name:<10} {printable(', '.join(parts))}")
    if told.record is not None:
        print(f"\n{pasted('sd-ext generate --again', picture)}")
    else:
        print(f"\nmade by {told.program}; to draw with these settings here:")
        print(pasted("sd-ext generate --model MODEL --from", picture))


def of_weights(path: Path) -> dict[str, str]:
    """What a file of weights is, as lines. Of a LoRA that cannot be read here, what its header says, and why not."""
    lines, kind = describe(path), tell(path).kind
    if kind not in ("lora", "unknown"):
        return lines
    from ..lora import describe as describe_lora

    try:
        return describe_lora(path).lines()
    except InputError as error:
        return lines if kind == "unknown" else {**lines, "not read": str(error).removeprefix(f"{path}: ")}


def show(lines: Mapping[str, str]) -> None:
    """Print lines with their names in a column."""
    for name, value in lines.items():
        print(f"{name:<{max(map(len, lines))}} {printable(value)}")


def _changes(texts: list[str]) -> dict[str, str]:
    """What --edit says, by name."""
    changes: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--edit {text!r} cannot be read; {WRITE}")
        if name not in ENTRIES:
            raise UnknownNameError("entry for --edit", name, ENTRIES)
        changes[name] = value
    return changes
