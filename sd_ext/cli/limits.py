"""How much `sd-ext convert` keeps of each module, as options."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, ClassVar

from ..errors import InputError
from .request.option import Group, Option

if TYPE_CHECKING:
    from ..lora import Keep


@dataclass(frozen=True, kw_only=True)
class Limits(Group):
    """How much to keep of each module: the fewest directions that meet all limits given. See `sd_ext.lora.Keep`."""

    title: ClassVar[str] = "How much to keep of each module"

    rank: Annotated[int | None, Option("At most so many directions.", "N")] = None
    conv_rank: Annotated[int | None, Option("The same, for convolutions larger than 1 x 1.", "N", "as --rank")] = None
    energy: Annotated[float | None, Option("So much of the squared norm: 0.99, or 1 for all of it.", "SHARE")] = None
    sv_fro: Annotated[float | None, Option("So much of the norm (kohya's); --energy is its square.", "SHARE")] = None
    sv_cumulative: Annotated[float | None, Option("So much of the singular values' sum (kohya's).", "SHARE")] = None
    sv_ratio: Annotated[float | None, Option("Singular values above the largest over this (kohya's).", "X")] = None

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return any(getattr(self, field.name) is not None for field in fields(self))

    def check(self, needed: bool = True) -> None:
        """Raise `InputError` for a value out of range, or if there is none and one is `needed`."""
        if needed and not self.given:
            raise InputError("say how much to keep: --rank N, or --energy SHARE")
        for flag, rank in (("--rank", self.rank), ("--conv-rank", self.conv_rank)):
            if rank is not None and rank < 1:
                raise InputError(f"{flag} {rank} cannot work; choose 1 or more")
        shares = ("--energy", self.energy), ("--sv-fro", self.sv_fro), ("--sv-cumulative", self.sv_cumulative)
        for flag, share in shares:
            if share is not None and not 0 < share <= 1:
                raise InputError(f"{flag} {share:g} cannot work; choose a share above 0, at most 1")
        if self.sv_ratio is not None and not 1 < self.sv_ratio < math.inf:
            raise InputError(f"--sv-ratio {self.sv_ratio:g} cannot work; choose a number above 1")

    def keep(self) -> Keep | None:
        """The limits as `sd_ext.lora` takes them; None if there are none."""
        from ..lora import Keep

        return Keep(**{field.name: getattr(self, field.name) for field in fields(self)}) if self.given else None
