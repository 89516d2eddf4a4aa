"""What to draw."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ...prompts.parser import parse
from .. import checks
from .option import Group, Option


@dataclass(frozen=True, kw_only=True)
class Words(Group):
    """What to draw."""

    title: ClassVar[str] = "Words"

    prompt: str  # the command's argument
    negative: Annotated[str, Option("What to keep out of the picture.", "TEXT")] = ""
    clip_skip: Annotated[int, Option("Read the text encoder's layer that is Nth from the end, as A1111.", "N")] = 1
    plain_prompt: Annotated[bool, Option("Brackets and BREAK mean nothing, and long prompts are cut.")] = False

    def check(self) -> None:
        """Raise `InputError` for words that cannot be drawn."""
        checks.check_prompts([self.prompt])
        checks.check_text("negative prompt", self.negative)
        checks.check_clip_skip(self.clip_skip)
        if not self.plain_prompt:
            for text in (self.prompt, self.negative):
                parse(text)
