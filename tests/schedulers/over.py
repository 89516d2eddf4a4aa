"""Laws over many cases: one test runs them all and names those that fail.

A law that holds for 68 samplers is one test, not 68: collecting thousands of items takes longer than running them.

    @over("name", WITNESSES, full=NAMES)
    @over("calls", [1, 7])
    def test_a_law(name, calls, mixture): ...

is run for every pair of a witness and a count; and, as a test marked slow, for every pair of a sampler and a count.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from itertools import product
from typing import Any

import pytest

import sd_ext

NAMES = [info.name for info in sd_ext.list_samplers()]
ONE_FIELD = [info.name for info in sd_ext.list_samplers() if not info.cls.weighs_unconditional]
"""Those that need no more than the guided prediction."""
STOCHASTIC = [info.name for info in sd_ext.list_samplers() if info.stochastic]
INVERSE = ["ddim inverse", "dpm++ 2m inverse"]
"""Go from a picture to noise."""
CLASSES = sorted({info.cls for info in sd_ext.list_samplers()}, key=lambda cls: cls.__name__)

WITNESSES = ["ddim", "dpm++ 2m", "plms", "heun", "dpm++ sde", "lcm"]
"""Samplers that between them use all that there is: one prediction and several, of x0 and of eps, one call a step and
two, noise, a `step` and a `set_timesteps` of their own, and a start at sigma.
"""


class Loop:
    """A test function and its cases, a list for each use of `over`."""

    def __init__(self, function: Callable[..., None]):
        self.function = function
        self.axes: list[tuple[list[str], list[Any], list[Any]]] = []
        """(names of arguments, the quick cases, all cases)"""

    def cases(self, matrix: str) -> Iterable[dict[str, Any]]:
        """Every combination, of the quick cases or of all."""
        for values in product(*(full if matrix == "full" else quick for _, quick, full in self.axes)):
            case: dict[str, Any] = {}
            for (names, _, _), value in zip(self.axes, values, strict=True):
                case |= dict(zip(names, value if len(names) > 1 else [value], strict=True))
            yield case

    def run(self, matrix: str, fixtures: dict[str, Any]) -> None:
        """Run every case, and then say which failed and how the first did."""
        cases, failures = list(self.cases(matrix)), {}
        for case in cases:
            try:
                self.function(**case, **fixtures)
            except (Exception, pytest.fail.Exception) as error:
                failures[", ".join(f"{name}={_shown(value)}" for name, value in case.items())] = error
        assert cases, "no cases"
        if failures:
            lines = [f"  {case}: {' '.join(str(error).split())[:100]}" for case, error in failures.items()]
            summary = "\n".join([f"{len(failures)} of {len(cases)} cases fail:", *lines])
            raise AssertionError(summary) from next(iter(failures.values()))


def _shown(value: Any) -> str:
    return value.__name__ if isinstance(value, type) else str(value)


def _looping(function: Callable[..., None]) -> Any:
    """A test that runs `function` over the cases of its `loop`."""
    loop = Loop(function)

    @functools.wraps(function)
    def test(matrix: str = "quick", **fixtures: Any) -> None:
        loop.run(matrix, fixtures)

    vars(test).update(loop=loop, pytestmark=list(getattr(function, "pytestmark", [])))
    return test


def over(names: str, quick: Iterable[Any], full: Iterable[Any] | None = None) -> Callable[[Any], Any]:
    """Make a test a loop over cases; several of these make it a loop over all their combinations.

    Args:
        names: of the arguments that a case gives, with commas between them.
        quick: the cases.
        full: more cases, for a slow test besides; by default none.
    """
    some = list(quick)
    axis = ([name.strip() for name in names.split(",")], some, some if full is None else list(full))

    def decorate(test: Any) -> Any:
        test = test if hasattr(test, "loop") else _looping(test)
        test.loop.axes.insert(0, axis)
        given = {name for names, _, _ in test.loop.axes for name in names}
        wanted = [p for name, p in inspect.signature(test.loop.function).parameters.items() if name not in given]
        if any(every is not some for _, some, every in test.loop.axes):
            wanted.insert(0, inspect.Parameter("matrix", inspect.Parameter.POSITIONAL_OR_KEYWORD))
            if not any(mark.name == "parametrize" for mark in test.pytestmark):
                sizes = ["quick", pytest.param("full", marks=pytest.mark.slow)]
                test = pytest.mark.parametrize("matrix", sizes)(test)
        test.__signature__ = inspect.Signature(wanted)
        return test

    return decorate
