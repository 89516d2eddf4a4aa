"""The standard library's private parts: the variables of a caller."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

from .seam import seam


@seam("_getframe", seen="CPython 3.10 to 3.14, sys; other Pythons need not have it", gone="guidance intervals")
def variables_of_caller(name: str) -> Mapping[str, Any]:
    """The variables of the innermost function in this thread's calls that has one of this name; empty if none has.

    Args:
        name: of a parameter or local variable.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and name not in frame.f_code.co_varnames:
        frame = frame.f_back
    return {} if frame is None else frame.f_locals
