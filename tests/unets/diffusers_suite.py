"""Diffusers' own tests of its U-Net on our class in the place of its own.

    DIFFUSERS_CHECKOUT=/path/to/diffusers pytest -m slow tests/unets/test_diffusers_suite.py
    DIFFUSERS_CHECKOUT=/path/to/diffusers python -m tests.unets.diffusers_suite    # what differs, as JSON

Every test runs three times, in processes of their own: with the plain class, with ours as it is, and with tokens
merged, which acts in training mode too. Random numbers are seeded before each, also where a test does not, and of all
that the U-Nets predict in it a digest is noted: neutral must be plain to the bit. With tokens merged it is noted in how
many layers some were, so that no test passes empty. The checkout gives the tests, the installed Diffusers runs them.

These tests call a network once, where a cache has nothing to reuse; what it does in pipelines is in
`test_unet_pipelines.py`, and what the tests ask of a network in `test_as_diffusers_tests.py` with the cache on.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHECKOUT = "DIFFUSERS_CHECKOUT"
"""Environment variable that names a checkout of Diffusers."""

EXPECTED = Path(__file__).with_name("diffusers_suite.json")
"""Way to run -> reason -> tests that differ for it."""

WAYS = {
    "plain": "UNet2DConditionModel",
    "neutral": "VariantUNet2DConditionModel",
    "merged": "TokenReducedUNet2DConditionModel",
}
"""Way to run -> the class of all U-Nets."""

FILE = "tests/models/unets/test_models_unet_2d_condition.py"
WITHOUT = "not compile and not hub"
"""What needs the network or a compiler, of pytest's `-k`, in which case does not matter."""

Told = dict[str, dict[str, Any]]


def run(checkout: Path, way: str) -> Told:
    """Run the tests in one of `WAYS`.

    Returns:
        Test -> `outcome` ("passed", "failed", "skipped"), `how` it failed, `digest` of all predictions, how many
        `calls` of U-Nets there were, and in how many layers tokens were `merged`.

    Raises:
        RuntimeError: they cannot be collected.
    """
    ours = str(Path(__file__).parents[2])
    path = os.pathsep.join([str(checkout), ours, *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONHASHSEED": "0"}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, __file__, "inside", way, str(result)]
        done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
        if not result.is_file():
            raise RuntimeError(f"Diffusers' tests did not run:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
        return json.loads(result.read_text("utf-8"))


def differences(plain: Told, other: Told, way: str) -> dict[str, str]:
    """How tests that pass with the plain class differ in another way to run, and predictions of any: test -> what."""
    found = {}
    for test, told in plain.items():
        now = other.get(test, {"outcome": "missing", "how": "", "digest": "", "calls": 0})
        if told["outcome"] == "skipped":
            continue
        if told["outcome"] == "passed" != now["outcome"]:
            found[test] = f"{now['outcome']}: {now['how'][-300:]}"
        elif way == "neutral" and now["digest"] != told["digest"]:
            found[test] = "predicts other numbers"
        elif way == "merged" and now["calls"] and not now["merged"]:
            found[test] = "no tokens were merged"
    return found


def expected(way: str) -> dict[str, str]:
    """The reason of each test that is known to differ."""
    told = json.loads(EXPECTED.read_text("utf-8"))[way]
    return {test: reason for reason, tests in told.items() for test in tests}


class Recorder:
    """A pytest plugin that seeds, and notes outcomes, what U-Nets predicted, and where tokens were merged.

    Args:
        plain: the class of which all U-Nets are.
    """

    def __init__(self, plain: type):
        self.plain, self.told = plain, {}
        self._begin()

    def _begin(self) -> None:
        import numpy as np
        import torch

        random.seed(0)
        if theirs := sys.modules.get("tests.testing_utils"):
            theirs.global_rng.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        self.digest, self.calls, self.merged = hashlib.sha256(), 0, 0

    def see(self, module: Any, _: Any, output: Any) -> None:
        """After any module's call: note what a U-Net predicted."""
        if isinstance(module, self.plain):
            predicted = output[0].detach().float().cpu().contiguous()
            self.digest.update(str(tuple(predicted.shape)).encode() + predicted.numpy().tobytes())
            self.calls += 1

    def pytest_runtest_setup(self, item: Any) -> None:
        self._begin()

    def pytest_runtest_call(self, item: Any) -> None:
        self._begin()

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note a test's outcome."""
        if report.when == "call" or report.outcome != "passed":
            self.told[report.nodeid] = {
                "outcome": report.outcome,
                "how": report.longreprtext[-600:] if report.failed else "",
                "digest": self.digest.hexdigest(),
                "calls": self.calls,
                "merged": self.merged,
            }


def watch(recorder: Recorder) -> None:
    """Count the layers whose tokens are merged."""
    from sd_ext.unets.inside import merging

    match = merging.match

    def matched(*args: Any, **kwargs: Any) -> Any:
        found = match(*args, **kwargs)
        recorder.merged += found.moved.shape[1] > 0
        return found

    merging.match = matched


def inside(way: str, result: str) -> None:
    """In the checkout's folder: put our class in, run, and write what came out."""
    sys.path = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).parent]
    import diffusers
    import pytest
    import torch

    recorder = Recorder(diffusers.UNet2DConditionModel)
    if way != "plain":
        import sd_ext

        diffusers.UNet2DConditionModel = getattr(sd_ext, WAYS[way])
        watch(recorder)
    torch.nn.modules.module.register_module_forward_hook(recorder.see)
    options = ["-q", "--tb=short", "-p", "no:xdist", "-p", "no:cacheprovider", "-W", "ignore", "-k", WITHOUT]
    pytest.main([FILE, *options], plugins=[recorder])
    Path(result).write_text(json.dumps(recorder.told), "utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        inside(*sys.argv[2:])
    else:
        told = {way: run(Path(os.environ[CHECKOUT]), way) for way in WAYS}
        found = {way: differences(told["plain"], told[way], way) for way in WAYS if way != "plain"}
        counts = {way: sum(each["outcome"] == "passed" for each in tests.values()) for way, tests in told.items()}
        print(json.dumps({"passed": counts, **found}, indent=1))
