"""Where pictures go, and how many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from .. import checks
from .option import Group, Option

FORMATS = "png", "jpeg", "webp"


@dataclass(frozen=True, kw_only=True)
class Output(Group):
    """Where pictures go, and how many."""

    title: ClassVar[str] = "Pictures"

    num: Annotated[int, Option("Pictures per prompt, seeds counting up.", "N")] = 1
    out: Annotated[Path, Option("A folder, or for a single picture a .png, .jpg or .webp file.", "PATH", path=True)] = (
        Path(".")
    )
    format: Annotated[
        str | None, Option("Of the files: png, webp (both exact) or jpeg.", "png|jpeg|webp", "png", values=FORMATS)
    ] = None
    overwrite: Annotated[bool, Option("Let --out FILE replace a file.")] = False

    def check(self) -> None:
        """Raise `InputError` for a format that does not exist."""
        if self.format is not None:
            checks.check_choice("--format", self.format, FORMATS)
