"""Diffusers' own scheduler tests pass on our classes, save for those of a committed list, each with a reason."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from . import diffusers_suite as suite

DEVIATIONS = Path(__file__).parents[2] / "docs" / "deviations.md"


def test_every_reason_is_told():
    """The list and the page have the same reasons, and no test is in it twice."""
    told = DEVIATIONS.read_text("utf-8").split("## Diffusers' own tests")[1].split("\n## ")[0]
    rows = [line.split("|")[1].strip() for line in told.splitlines() if line.startswith("|")][2:]
    reasons = suite.expected()
    assert sorted(rows) == sorted(set(reasons.values()))
    listed = sum(len(tests) for tests in suite.json.loads(suite.EXPECTED.read_text("utf-8")).values())
    assert listed == len(reasons) <= 65


@pytest.mark.slow
def test_diffusers_own_suite():
    checkout = os.environ.get(suite.CHECKOUT)
    if not checkout:
        pytest.skip(f"no checkout of Diffusers: {suite.CHECKOUT} names one")
    outcomes = suite.run(Path(checkout))
    known = suite.expected()
    failed = {test: how for test, (outcome, how) in outcomes.items() if outcome == "failed"}
    unexpected = {test: how[-500:] for test, how in failed.items() if test not in known}
    assert not unexpected, "fail without a reason in the list"
    assert not {test for test in known if outcomes.get(test, ("failed",))[0] == "passed"}, "pass now: strike them out"
    assert sum(outcome == "passed" for outcome, _ in outcomes.values()) > 900
