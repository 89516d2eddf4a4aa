"""On which device, and in which dtype."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from .. import checks
from .option import Group, Option

AUTO = "auto"
DEVICES = AUTO, "cpu", "cuda"
DTYPES = AUTO, "float32", "float16", "bfloat16"


@dataclass(frozen=True, kw_only=True)
class Machine(Group):
    """On which device, and in which dtype."""

    title: ClassVar[str] = "Machine"

    device: Annotated[str, Option("CUDA where there is one, unless told.", "auto|cpu|cuda", values=DEVICES)] = AUTO
    dtype: Annotated[
        str,
        Option("float32 on a CPU, float16 on CUDA, unless told.", "auto|float32|float16|bfloat16", values=DTYPES),
    ] = AUTO

    def check(self) -> None:
        """Raise `InputError` for a device or dtype that does not exist."""
        checks.check_choice("--device", self.device, DEVICES)
        checks.check_choice("--dtype", self.dtype, DTYPES)
