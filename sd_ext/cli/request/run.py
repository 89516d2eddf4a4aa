"""How the command behaves: nothing that a picture depends on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from ...errors import InputError
from .option import Option
from .resources import Resources


@dataclass(frozen=True, kw_only=True)
class Run(Resources):
    """How the command behaves."""

    title: ClassVar[str] = "Command"

    again: Annotated[Path | None, Option("Make this picture again.", "PICTURE", path=True)] = None
    start: Annotated[
        Path | None, Option("Take this picture's settings as defaults.", "PICTURE", flag="--from", path=True)
    ] = None
    lines: Annotated[
        str | None,
        Option(
            "Prompts from a .txt, .csv or .jsonl file, any options on each line; - is standard input.",
            "FILE",
            flag="--prompts",
            path=True,
        ),
    ] = None
    preview: Annotated[Path | None, Option("Keep this picture up to date while drawing.", "FILE", path=True)] = None
    dry_run: Annotated[bool, Option("Say what would be drawn, and stop.")] = False
    json: Annotated[bool, Option("Print one JSON object for each picture instead of its path.")] = False
    quiet: Annotated[bool, Option("No progress and no hints; what is ignored or cut is still said.")] = False
    trust_remote_code: Annotated[bool, Option("Run Python code that comes with the model.")] = False

    def check(self) -> None:
        """Raise `InputError` for options that contradict each other."""
        if self.again and self.start:
            raise InputError("--again and --from name two pictures to start from; give one of them")
        if self.preview is not None and self.preview.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
            raise InputError(f"--preview {self.preview}: name a .png, .jpg or .webp file")
