"""Diffusers' own tests of its U-Net pass on our classes, save for a committed list, each with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from . import diffusers_suite as suite

OURS = [way for way in suite.WAYS if way != "plain"]


def test_differences_are_seen():
    """A failure, a missing test, other numbers, and one that passes empty, of those that pass with Diffusers' class."""
    usual = {"outcome": "passed", "how": "", "digest": "a", "calls": 2, "acted": 1}
    same, fails, gone, other, idle, anyway = (
        f"{suite.MODEL[0]}::{name}" for name in ("same", "fails", "gone", "other", "idle", "fails anyway")
    )
    plain = dict.fromkeys((same, fails, gone, other, idle), usual) | {anyway: {**usual, "outcome": "failed"}}
    ours = plain | {
        fails: {**usual, "outcome": "failed", "how": "AssertionError"},
        other: {**usual, "digest": "b"},
        idle: {**usual, "acted": 0},
    }
    ours.pop(gone)
    failing = {fails: "failed: AssertionError", gone: "missing: "}
    assert suite.differences(plain, ours, "neutral") == {**failing, other: "predicts other numbers"}
    assert suite.differences(plain, ours, "merged") == {**failing, idle: "no tokens were merged"}
    assert suite.differences(plain, ours, "cached") == {}  # the network's own tests do not run so
    ours = {test.replace(suite.MODEL[0], suite.PIPELINES[0]): told for test, told in ours.items()}
    plain = {test.replace(suite.MODEL[0], suite.PIPELINES[0]): told for test, told in plain.items()}
    found = suite.differences(plain, ours, "cached")
    assert found.pop(idle.replace(suite.MODEL[0], suite.PIPELINES[0])) == "nothing was reused" and len(found) == 2
    for way in OURS:
        assert all(test.startswith("tests/") and reason for test, reason in suite.expected(way).items())


@pytest.mark.slow
def test_diffusers_own_suite():
    checkout = os.environ.get(suite.CHECKOUT)
    if not checkout:
        pytest.skip(f"no checkout of Diffusers: {suite.CHECKOUT} names one")
    told = {way: suite.run(Path(checkout), way) for way in suite.WAYS}
    passed = {test for test, each in told["plain"].items() if each["outcome"] == "passed"}
    assert len(passed) > 50
    for way in OURS:
        found, known = suite.differences(told["plain"], told[way], way), suite.expected(way)
        assert not {test: how for test, how in found.items() if test not in known}, f"{way}: not in the list"
        assert not {test for test in known if test in passed and test not in found}, f"{way}: pass now, strike them out"
        acted = [each for each in told[way].values() if each["outcome"] == "passed" and each["acted"]]
        assert way not in suite.FEATURES or len(acted) > 40
