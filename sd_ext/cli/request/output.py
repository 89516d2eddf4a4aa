"""Where pictures go, and how many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from .option import Group, Option


@dataclass(frozen=True, kw_only=True)
class Output(Group):
    """Where pictures go, and how many."""

    title: ClassVar[str] = "Pictures"

    num: Annotated[int, Option("Pictures per prompt, seeds counting up.", "N")] = 1
    out: Annotated[Path, Option("A folder, or for a single picture a .png file.", "PATH", path=True)] = Path(".")
    overwrite: Annotated[bool, Option("Let --out FILE replace a file.")] = False
