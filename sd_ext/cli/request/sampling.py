"""How it is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from .. import checks
from .option import Group, Option

STEPS = 20
PROGRAMS = ("a1111", "a1111_1_8", "comfyui", "forge", "invokeai", "sdnext")
"""See `sd_ext.schedulers.programs`, which this does not import: help must not wait for torch."""


@dataclass(frozen=True, kw_only=True)
class Sampling(Group):
    """How it is drawn."""

    title: ClassVar[str] = "Drawing"

    sampler: Annotated[str | None, Option("See sd-ext samplers.", "NAME", "the model's own")] = None
    grid: Annotated[str | None, Option("See sd-ext samplers.", "NAME", "the sampler's own")] = None
    like: Annotated[
        str | None, Option("Take the steps of this program.", "PROGRAM", "ours", values=tuple(PROGRAMS))
    ] = None
    steps: Annotated[int, Option("Network evaluations.", "N")] = STEPS
    guidance: Annotated[float | None, Option("How closely to follow the prompt; 1 is off.", "G", "the model's own")] = (
        None
    )
    guidance_schedule: Annotated[
        str | None,
        Option("linear, cosine, interval or 'interval LOW HIGH' in sigma, of what guidance adds.", "SHAPE", "constant"),
    ] = None
    seed: Annotated[int, Option("First picture's seed; -1 draws one.", "N", "0")] = 0
    size: Annotated[str | None, Option("In pixels.", "WxH", "what the model was trained on")] = None

    @property
    def sides(self) -> tuple[int, int]:
        """Width and height in pixels, of a recipe whose size is set."""
        width, height = (self.size or "").lower().replace("×", "x").split("x")
        return int(width), int(height)

    def check(self) -> None:
        """Raise `InputError` for numbers that cannot work."""
        checks.check_steps(self.steps)
        checks.check_guidance(self.guidance)
        checks.parse_size(self.size)
