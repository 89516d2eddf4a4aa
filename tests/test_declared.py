"""Declared types: what fits, what does not, and what is said of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest

from sd_ext.declared import Unbounded, Wide, check, make, shown
from sd_ext.errors import InputError, ModelError

FITS = [
    (1, int), (np.int64(1), int), (1, float), (1.5, float), (np.float32(1), float), (10**300, float), ("a", str),
    (True, bool), (None, None), (None, int | None), (3, int | None), ("x", Any), ([], list), ([1, 2], list[int]),
    ((1, 2), list[int]), ([1, 2.5], Sequence[float]), (np.linspace(0, 1, 3), Sequence[float]),
    ([1, "a"], tuple[int, str]),
    ([1, 2], tuple[int, ...]), ({"a": 1}, dict[str, int]), ({}, dict), ({"rho": 7}, Mapping[str, float] | None),
    ("b", Literal["a", "b"]), (-math.inf, Unbounded), (1, Unbounded), ([[1.0], []], list[list[float]]),
    (2**64 - 1, Wide), (-1, Wide), (4, Literal["auto"] | int), (["mid"], str | Sequence[str]),
]  # fmt: skip
FAILS = [
    (True, int, "a whole number"), (1.0, int, "a whole number"), ("1", int, "a whole number"),
    (2**63, int, "a whole number of at most 63 bits"), (2**64, Wide, "a whole number of at most 64 bits"),
    (1.5, Wide, "a whole number"), (True, float, "a number"),
    (math.nan, float, "a number"), (math.inf, float, "a number"), (math.nan, Unbounded, "a number"),
    (10**400, float, "a number"), (10**5000, float, "a number"), ("1", float, "a number"), (1, str, "text"),
    (b"a", str, "text"), ("false", bool, "true or false"), (1, bool, "true or false"), (None, int, "a whole number"),
    ("a", int | None, "a whole number or none"), ("ab", list[str], "a list of texts"),
    (1, list[int], "a list of whole"),
    ([1], tuple[int, str], "a list of 2"), ("c", Literal["a", "b"], "'a' or 'b'"), (1, Literal["a", "b"], "'a' or 'b'"),
    ([], dict, "an object"), (np.float64(3), Sequence[float], "a list of numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("value", "kind"), FITS, ids=[str(kind) for _, kind in FITS])
def test_what_fits(value, kind):
    check(value, kind, "file")


@pytest.mark.parametrize(("value", "kind", "words"), FAILS, ids=[words for *_, words in FAILS])
def test_what_does_not_fit_is_said(value, kind, words):
    with pytest.raises(InputError, match=f"^file: key must be {words}.*, got ") as error:
        check(value, kind, "file", "key")
    assert len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("value", "kind", "place"),
    [
        ({"a": [1, "x"]}, dict[str, list[int]], r"a\[1\]"),
        ({"a": {"b": None}}, dict[str, dict[str, str]], r"a\.b"),
        ([1.0, math.nan], list[float], r"\[1\]"),
        ([[1, 2.0], [1, True]], list[tuple[int, float]], r"\[1\]\[1\]"),
        ({"a\n": 1}, dict[str, str], r"a\\n"),
    ],
)
def test_the_innermost_place_is_named(value, kind, place):
    with pytest.raises(InputError, match=f"^file: {place} must be"):
        check(value, kind, "file")


@dataclass
class Facts:
    steps: int
    names: tuple[str, ...] = ()
    points: tuple[tuple[int, float], ...] = ()
    more: dict[str, Any] | None = None

    def __post_init__(self):
        if self.steps < 0:
            raise InputError("steps must be 0 or more")


def test_an_object_becomes_a_dataclass():
    made = make(Facts, {"steps": 3, "names": ["a"], "points": [[1, 2.0]], "unknown": 1}, "file")
    assert made == Facts(3, ("a",), ((1, 2.0),))
    for data, words in [
        ({}, "^file lacks steps \\(a whole number"),
        ({"steps": -1}, "^file: steps must be 0 or more"),
        ({"steps": 1, "points": [[1]]}, r"points\[0\] must be a list of 2: a whole number, a number"),
        ([], "^file must be an object with keys, got "),
    ]:
        with pytest.raises(ModelError, match=words):
            make(Facts, data, "file", error=ModelError)


def test_values_are_shown_short():
    assert shown("a") == "'a'"
    assert len(shown("x" * 10**6)) < 100
    assert len(shown(list(range(10**6)))) < 100
    assert "digits" in shown(10**5000)
