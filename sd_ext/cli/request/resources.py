"""How memory and time are spent: nothing that a picture depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from ...errors import InputError
from .. import checks
from .option import Group, Option

OFFLOADS = "model", "sequential"
MAX_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class Resources(Group):
    """How memory and time are spent."""

    title: ClassVar[str] = "Memory and speed"

    batch: Annotated[
        int,
        Option("Draw so many at once. If that changes last bits here, it is said; to see, one is drawn twice.", "N"),
    ] = 1
    offload: Annotated[
        str | None,
        Option(
            "Keep on the GPU only the part that runs (model), or only the layer that runs (sequential).",
            "model|sequential",
            "all of it",
            values=OFFLOADS,
        ),
    ] = None
    vae_slicing: Annotated[bool, Option("Decode the pictures of a batch one by one: less memory.")] = False

    def check_resources(self, device: str) -> None:
        """Raise `InputError` for values that cannot work.

        Args:
            device: as asked for.
        """
        if not 1 <= self.batch <= MAX_BATCH:
            raise InputError(f"--batch {self.batch} cannot work; choose 1 to {MAX_BATCH}")
        if self.offload is not None:
            checks.check_choice("--offload", self.offload, OFFLOADS)
            if device == "cpu":
                raise InputError(f"--offload {self.offload} saves memory of a GPU, and --device is cpu; leave one out")
