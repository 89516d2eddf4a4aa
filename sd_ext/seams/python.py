"""The standard library's private parts: access to the variables of a calling function."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any

from .seam import seam


@seam(
    "_getframe",
    seen="CPython 3.10 to 3.14, sys; other Pythons need not have it",
    gone="finding the pipeline that calls a U-Net",
)
def variables_of_caller(name: str) -> Mapping[str, Any]:
    """The variables of the innermost calling function, in this thread, that has a variable called `name`.

    Args:
        name: a parameter or local variable.

    Returns:
        All variables of that function; empty if no function has one of that name.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and name not in frame.f_code.co_varnames:
        frame = frame.f_back
    return {} if frame is None else frame.f_locals
