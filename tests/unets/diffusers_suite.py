"""Diffusers' own tests of its U-Net, and of its SD and SDXL pipelines, on our class in the place of its own.

    DIFFUSERS_CHECKOUT=/path/to/diffusers pytest -m slow tests/unets/test_diffusers_suite.py
    DIFFUSERS_CHECKOUT=/path/to/diffusers python -m tests.unets.diffusers_suite    # what differs, as JSON

Every test runs three times, in processes of their own: with the plain class, with ours as it is, and with ours and the
cache on. Random numbers are seeded before each, also where a test does not, and of all that the U-Nets predict in it a
digest is noted: neutral must be plain to the bit. With the cache, the calls that reused are counted. The checkout gives
the tests, the Diffusers that is installed runs them; what fails on its own class already says nothing about ours.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHECKOUT = "DIFFUSERS_CHECKOUT"
"""Environment variable that names a checkout of Diffusers."""

EXPECTED = Path(__file__).with_name("diffusers_suite.json")
"""Way to run -> reason -> tests that differ for it."""

WAYS = ("plain", "neutral", "cached")
FILES = (
    "tests/models/unets/test_models_unet_2d_condition.py",
    *(f"tests/pipelines/stable_diffusion/test_stable_diffusion{name}.py" for name in ("", "_img2img", "_inpaint")),
    "tests/pipelines/stable_diffusion/test_stable_diffusion_instruction_pix2pix.py",
    "tests/pipelines/stable_diffusion_2/test_stable_diffusion.py",
    *(
        f"tests/pipelines/stable_diffusion_xl/test_stable_diffusion_xl{name}.py"
        for name in ("", "_img2img", "_inpaint")
    ),
)
WITHOUT = "not compile and not hub and not Hub and not onnx and not download"
"""What needs the network or a compiler, of pytest's `-k`."""

Told = dict[str, dict[str, Any]]


def run(checkout: Path, way: str) -> Told:
    """Run the tests in one of `WAYS`.

    Returns:
        Test -> `outcome` ("passed", "failed", "skipped"), `how` it failed, `digest` of all predictions, `reused` calls.

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
    """How tests that pass with the plain class differ in another way to run: test -> what."""
    found = {}
    for test, told in plain.items():
        now = other.get(test, {"outcome": "missing", "how": ""})
        if told["outcome"] != "passed":
            continue
        if now["outcome"] != "passed":
            found[test] = f"{now['outcome']}: {now['how'][-300:]}"
        elif way == "neutral" and now["digest"] != told["digest"]:
            found[test] = "predicts other numbers"
    return found


def expected(way: str) -> dict[str, str]:
    """The reason of each test that is known to differ."""
    told = json.loads(EXPECTED.read_text("utf-8"))[way]
    return {test: reason for reason, tests in told.items() for test in tests}


class Recorder:
    """A pytest plugin that seeds, and notes outcomes and what U-Nets predicted.

    Args:
        plain: the class of which all U-Nets are.
    """

    def __init__(self, plain: type):
        self.plain, self.told, self.reused = plain, {}, 0
        self.digest = hashlib.sha256()

    def see(self, module: Any, _: Any, output: Any) -> None:
        """After any module's call: note what a U-Net predicted."""
        if isinstance(module, self.plain):
            predicted = output[0].detach().float().cpu().contiguous()
            self.digest.update(str(tuple(predicted.shape)).encode() + predicted.numpy().tobytes())

    def pytest_runtest_setup(self, item: Any) -> None:
        self._seed()
        self.digest, self.reused = hashlib.sha256(), 0

    def pytest_runtest_call(self, item: Any) -> None:
        self._seed()

    def _seed(self) -> None:
        import random

        import numpy as np
        import torch

        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.told[report.nodeid] = {
                "outcome": report.outcome,
                "how": report.longreprtext[-600:] if report.failed else "",
                "digest": self.digest.hexdigest(),
                "reused": self.reused,
            }


def counting(recorder: Recorder) -> Iterator[None]:
    """Count the calls that reuse deep features."""
    from sd_ext.unets.features import cache

    whole = cache._Step.shallow

    def shallow(self: Any, entry: Any) -> Any:
        found = whole(self, entry)
        recorder.reused += found is not None
        return found

    cache._Step.shallow = shallow
    yield


def inside(way: str, result: str) -> None:
    """In the checkout's folder: put our class in, run, and write what came out."""
    sys.path = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).parent]
    import diffusers
    import pytest
    import torch

    plain = diffusers.UNet2DConditionModel
    recorder = Recorder(plain)
    if way != "plain":
        import sd_ext

        name = "VariantUNet2DConditionModel" if way == "neutral" else "CachedUNet2DConditionModel"
        diffusers.UNet2DConditionModel = getattr(sd_ext, name)
        next(counting(recorder))
    torch.nn.modules.module.register_module_forward_hook(recorder.see)
    options = ["-q", "--tb=short", "-p", "no:xdist", "-p", "no:cacheprovider", "-W", "ignore", "-k", WITHOUT]
    pytest.main([*FILES, "--continue-on-collection-errors", *options], plugins=[recorder])
    Path(result).write_text(json.dumps(recorder.told), "utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        inside(*sys.argv[2:])
    else:
        told = {way: run(Path(os.environ[CHECKOUT]), way) for way in WAYS}
        found = {way: differences(told["plain"], told[way], way) for way in WAYS[1:]}
        counts = {way: sum(each["outcome"] == "passed" for each in tests.values()) for way, tests in told.items()}
        acted = sum(each["reused"] > 0 for each in told["cached"].values())
        print(json.dumps({"passed": counts, "reused in": acted, **found}, indent=1))
