"""Where pictures go, and how many."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from ...errors import InputError
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
    manifest: Annotated[
        bool, Option("Number the files and list them in manifest.jsonl; the same command goes on after a stop.")
    ] = False
    shards: Annotated[int | None, Option("As --manifest, in tar files of N pictures, as WebDataset reads.", "N")] = None

    def check(self) -> None:
        """Raise `InputError` for a format that does not exist, or shards of nothing."""
        if self.format is not None:
            checks.check_choice("--format", self.format, FORMATS)
        if self.shards is not None and self.shards < 1:
            raise InputError(f"--shards is {self.shards}; give the number of pictures in a shard, 1 or more")
