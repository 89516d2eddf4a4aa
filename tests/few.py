"""A few cases of a matrix by default, and the others among the slow tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], quick: int | Callable[[Any], Any]) -> list[Any]:
    """Parameters of a test, of which those that are not quick are marked slow.

    Args:
        cases: values, or tuples of them for tests with several arguments.
        quick: says of a case whether it is a witness that runs by default; a number takes every so many, the first
            among them.
    """
    made = []
    for number, case in enumerate(cases):
        stays = quick(case) if callable(quick) else number % quick == 0
        values = case if isinstance(case, tuple) else (case,)
        made.append(pytest.param(*values, marks=() if stays else pytest.mark.slow))
    return made
