"""What to draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from .. import checks
from .option import Group, Option


@dataclass(frozen=True, kw_only=True)
class Words(Group):
    """What to draw."""

    title: ClassVar[str] = "Words"

    prompt: str  # the command's argument
    negative: Annotated[str, Option("What to keep out of the picture.", "TEXT")] = ""

    def check(self) -> None:
        """Raise `InputError` for words that cannot be drawn."""
        checks.check_prompts([self.prompt])
        checks.check_text("negative prompt", self.negative)
