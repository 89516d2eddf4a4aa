"""Diffusers' own scheduler tests on our classes, which are put in the place of its same-named ones.

    DIFFUSERS_CHECKOUT=/path/to/diffusers pytest tests/schedulers/test_diffusers_suite.py
    DIFFUSERS_CHECKOUT=/path/to/diffusers python -m tests.schedulers.diffusers_suite    # what fails, as JSON

The checkout gives the tests; the Diffusers that is installed runs them. They import one another as the package `tests`,
as ours do, so they run in a process of their own: from their folder, which stands first on its path, and with the
installed Diffusers imported before their settings put the checkout's sources on it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHECKOUT = "DIFFUSERS_CHECKOUT"
"""Environment variable that names a checkout of Diffusers."""

EXPECTED = Path(__file__).with_name("diffusers_suite.json")
"""Which tests fail, by the reason, which is told in docs/deviations.md under these names."""

FOLDER = "tests/schedulers"


def expected() -> dict[str, str]:
    """The reason of each test that is known to fail."""
    told = json.loads(EXPECTED.read_text("utf-8"))
    return {f"{FOLDER}/{test}": reason for reason, tests in told.items() for test in tests}


def run(checkout: Path) -> dict[str, tuple[str, str]]:
    """Run the suite: the outcome of each test ("passed", "failed", "skipped"), and how it failed.

    Raises:
        RuntimeError: its tests cannot be collected.
    """
    ours = str(Path(__file__).parents[2])
    path = os.pathsep.join([str(checkout), ours, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    # A test of theirs goes on with the last of a set of classes, whose order the hash seed decides.
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        done = subprocess.run(
            [sys.executable, __file__, "inside", str(result)],
            cwd=checkout,
            env=environment,
            capture_output=True,
            text=True,
        )
        if not result.is_file():
            raise RuntimeError(f"Diffusers' suite did not run:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        told = json.loads(result.read_text("utf-8"))
    if told["broken"]:
        raise RuntimeError(f"Diffusers' tests cannot be collected: {told['broken']}")
    return {test: tuple(outcome) for test, outcome in told["outcomes"].items()}


class Recorder:
    """A pytest plugin that notes outcomes."""

    def __init__(self) -> None:
        self.outcomes: dict[str, tuple[str, str]] = {}
        self.broken: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid] = report.outcome, report.longreprtext if report.failed else ""

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.broken.append(report.longreprtext[-600:])


def inside(result: str) -> None:
    """In the checkout's folder: put our classes in, run, and write what came out."""
    sys.path = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).parent]
    import diffusers
    import pytest

    import sd_ext

    for name in sd_ext.__all__:
        if name.endswith("Scheduler") and hasattr(diffusers, name):
            setattr(diffusers, name, getattr(sd_ext, name))
    recorder = Recorder()
    options = ["-q", "--tb=short", "-p", "no:xdist", "-p", "no:cacheprovider", "-W", "ignore"]
    pytest.main([FOLDER, *options], plugins=[recorder])
    Path(result).write_text(json.dumps({"outcomes": recorder.outcomes, "broken": recorder.broken}), "utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        inside(sys.argv[2])
    else:
        outcomes = run(Path(os.environ[CHECKOUT]))
        known, failed = expected(), {test: how for test, (outcome, how) in outcomes.items() if outcome == "failed"}
        print(json.dumps({test: how.splitlines()[-1:] for test, how in failed.items() if test not in known}, indent=1))
