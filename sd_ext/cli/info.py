"""`sd-ext info`: show how a picture was made, and the command that makes it again."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import printable
from .pictures import read_recipe


def info(picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="A PNG that sd-ext generate wrote.")]) -> None:
    """Print how a picture was made, and the command that makes it again."""
    recipe, software = read_recipe(picture)
    for name, value in {**asdict(recipe), "software": software}.items():
        if value != "":
            print(f"{name:<10} {printable(str(value))}")
    print(f"\n{printable(recipe.command())}")
