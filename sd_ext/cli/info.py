"""`sd-ext info`: show how a picture was made, and the command that makes it again; or what a model file is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ..errors import printable
from ..models import describe
from .pictures import read_told
from .shells import pasted


def info(
    picture: Annotated[Path, typer.Argument(metavar="FILE", help="A PNG, JPEG, WebP or .safetensors file.")],
) -> None:
    """Print how a picture was made, by this program, AUTOMATIC1111 or ComfyUI; or what a .safetensors file is."""
    if picture.suffix.lower() == ".safetensors":
        lines = describe(picture)
        for name, value in lines.items():
            print(f"{name:<{max(map(len, lines))}} {printable(value)}")
        return
    told = read_told(picture)
    for name, value in told.shown.items():
        parts = [f"{key} {each}" for key, each in value.items()] if isinstance(value, Mapping) else [str(value)]
        print(f"{name:<10} {printable(', '.join(parts))}")
    if told.record is not None:
        print(f"\n{pasted('sd-ext generate --again', picture)}")
    else:
        print(f"\nmade by {told.program}; to draw with these settings here:")
        print(pasted("sd-ext generate --model MODEL --from", picture))
