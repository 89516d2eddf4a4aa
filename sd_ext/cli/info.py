"""`sd-ext info`: show how a picture was made, and the command that makes it again; or what a model file is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import printable
from ..models import describe
from .pictures import read_record
from .shells import pasted


def info(
    picture: Annotated[
        Path, typer.Argument(metavar="FILE", help="A PNG that sd-ext generate wrote, or a .safetensors file.")
    ],
) -> None:
    """Print how a picture was made, and the command that makes it again; or what a .safetensors file is."""
    if picture.suffix.lower() == ".safetensors":
        lines = describe(picture)
        for name, value in lines.items():
            print(f"{name:<{max(map(len, lines))}} {printable(value)}")
        return
    record = read_record(picture)
    for name, value in {**record.recipe.as_json(), **record.made}.items():
        print(f"{name:<10} {printable(str(value))}")
    print(f"\n{pasted('sd-ext generate --again', picture)}")
