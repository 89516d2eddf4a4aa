"""What can be asked of `sd-ext compare`, as options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from ...errors import InputError
from ..request.option import Group, Option

REFERENCE = 100
MOST_CALLS = 1000


@dataclass(frozen=True, kw_only=True)
class Asked(Group):
    """The settings to compare: what is given several values varies, what is given one is the same in all pictures."""

    title: ClassVar[str] = "What to compare (several values, with commas, make it vary)"

    prompt: Annotated[tuple[str, ...], Option("What to draw; repeat for more.", "TEXT")] = ()
    samplers: Annotated[tuple[str, ...], Option("See sd-ext samplers.", "NAME,NAME", "the model's own")] = ()
    grids: Annotated[tuple[str, ...], Option("See sd-ext samplers.", "NAME,NAME", "the sampler's own")] = ()
    steps: Annotated[tuple[str, ...], Option("Network evaluations.", "N,N", "20")] = ()
    guidance: Annotated[tuple[str, ...], Option("How closely to follow the prompt.", "G,G", "the model's own")] = ()
    seeds: Annotated[tuple[str, ...], Option("Of the first noise.", "N,N", "0")] = ()
    unet: Annotated[tuple[str, ...], Option("Presets of the U-Net.", "NAME,NAME", "the model's own")] = ()
    unet_option: Annotated[
        tuple[str, ...], Option("Values of one option of the U-Net; repeat for more.", "NAME=VALUE,VALUE")
    ] = ()
    lora: Annotated[
        tuple[str, ...], Option("A LoRA at several strengths, such as style.safetensors:0,0.5,1.", "FILE_OR_ID:S,S")
    ] = ()
    models: Annotated[
        tuple[str, ...], Option("Pipeline folders, .safetensors files or Hub ids.", "PATH_OR_ID,...", "embedded")
    ] = ()


@dataclass(frozen=True, kw_only=True)
class Page(Group):
    """How the comparison is laid out, and where it goes."""

    title: ClassVar[str] = "The comparison"

    out: Annotated[
        Path, Option("A folder for pictures and page; pictures that are there are not drawn again.", "DIR", path=True)
    ] = Path("comparison")
    columns: Annotated[str | None, Option("Which setting varies from left to right.", "NAME", "chosen")] = None
    rows: Annotated[str | None, Option("Which varies from top to bottom.", "NAME", "chosen")] = None
    pages: Annotated[str | None, Option("Which varies from page to page.", "NAME", "the third")] = None
    reference: Annotated[
        int | None,
        Option(
            "Calls of the picture that distances are measured to; 0 measures none.",
            "N",
            f"{REFERENCE} where sampler, grid, steps or U-Net vary",
        ),
    ] = None
    strips: Annotated[bool, Option("Show under each picture, in the page, how it came about.")] = False
    yes: Annotated[bool, Option("Draw even very many pictures.")] = False
    json: Annotated[bool, Option("Print one JSON object for each picture.")] = False
    quiet: Annotated[bool, Option("No progress and no hints; what is ignored or cut is still said.")] = False
    trust_remote_code: Annotated[bool, Option("Run Python code that comes with the model.")] = False

    def check(self) -> None:
        """Raise `InputError` for a reference that cannot be, or an `out` that is a file."""
        if self.reference is not None and not (self.reference == 0 or 10 <= self.reference <= MOST_CALLS):
            raise InputError(f"--reference {self.reference} cannot work; choose 10 to {MOST_CALLS}, or 0 for none")
