"""With which weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ...models import EMBEDDED
from .option import Group, Option


@dataclass(frozen=True, kw_only=True)
class Weights(Group):
    """With which weights."""

    title: ClassVar[str] = "Model"

    model: Annotated[str, Option("Pipeline folder or Hub id.", "PATH_OR_ID", "the embedded model", path=True)] = (
        EMBEDDED
    )
    unet: Annotated[
        str | None,
        Option(
            "exact, balanced, fast; cached, tokens, highres: how much exactness to give for speed.",
            "NAME",
            "the model's own",
            values=("exact", "balanced", "fast", "cached", "tokens", "highres"),
        ),
    ] = None

    def check(self) -> None:
        """Raise `InputError` for what can be known to be wrong before anything is loaded."""
