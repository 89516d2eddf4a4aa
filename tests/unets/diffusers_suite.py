"""Diffusers' own tests of its U-Net, and of pipelines with one, on our class in the place of its own.

    DIFFUSERS_CHECKOUT=/path/to/diffusers pytest -m slow tests/unets/test_diffusers_suite.py
    DIFFUSERS_CHECKOUT=/path/to/diffusers python -m tests.unets.diffusers_suite    # what differs, as JSON

Every test runs in processes of their own: with the plain class, with ours as it is, and with a feature on. Those of
the network call it once, and have tokens merged, which acts in training mode too; those of pipelines call it several
times, and reuse deep features. Random numbers are seeded before each, also where a test does not, and of all that the
U-Nets predict in it a digest is noted: neutral must be plain to the bit. With a feature on it is noted how often it
acted, so that no test passes empty. The checkout gives the tests, the installed Diffusers runs them.

The pipelines' tests want a tokenizer of the Hub; one of letters stands in for it. Tests that hold its very numbers
fail with every class, and their predictions are compared nevertheless.
"""

from __future__ import annotations

import functools
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

MODEL = ("tests/models/unets/test_models_unet_2d_condition.py",)
PIPELINES = (
    "tests/pipelines/stable_diffusion/test_stable_diffusion.py",
    "tests/pipelines/stable_diffusion_xl/test_stable_diffusion_xl.py",
)
TOKENIZER = "hf-internal-testing/tiny-random-clip"

WAYS = {
    "plain": ("UNet2DConditionModel", MODEL + PIPELINES),
    "neutral": ("VariantUNet2DConditionModel", MODEL + PIPELINES),
    "merged": ("TokenReducedUNet2DConditionModel", MODEL),
    "cached": ("CachedUNet2DConditionModel", PIPELINES),
}
"""Way to run -> the class of all U-Nets, and the files that run with it."""

FEATURES = {"merged": "no tokens were merged", "cached": "nothing was reused"}
"""Way to run -> what it says of a test in which its feature did not act."""

WITHOUT = "not compile and not hub"
"""What needs the network or a compiler, of pytest's `-k`, in which case does not matter."""

Told = dict[str, dict[str, Any]]


def run(checkout: Path, way: str) -> Told:
    """Run the tests in one of `WAYS`.

    Returns:
        Test -> `outcome` ("passed", "failed", "skipped"), `how` it failed, `digest` of all predictions, how many
        `calls` of U-Nets there were, and how often the feature `acted`.

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
        if not test.startswith(WAYS[way][1]):
            continue
        now = other.get(test, {"outcome": "missing", "how": "", "digest": "", "calls": 0})
        if told["outcome"] == "skipped":
            continue
        if told["outcome"] == "passed" != now["outcome"]:
            found[test] = f"{now['outcome']}: {now['how'][-300:]}"
        elif way == "neutral" and now["digest"] != told["digest"]:
            found[test] = "predicts other numbers"
        elif way in FEATURES and now["calls"] > (way == "cached") and not now["acted"]:
            found[test] = FEATURES[way]
    return found


def expected(way: str) -> dict[str, str]:
    """The reason of each test that is known to differ."""
    told = json.loads(EXPECTED.read_text("utf-8"))[way]
    return {test: reason for reason, tests in told.items() for test in tests}


class Recorder:
    """A pytest plugin that seeds, and notes outcomes, what U-Nets predicted, and how often a feature acted.

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
        self.digest, self.calls, self.acted = hashlib.sha256(), 0, 0

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
                "acted": self.acted,
            }


def watch(recorder: Recorder) -> None:
    """Count the layers whose tokens are merged, and the calls that reuse deep features."""
    from sd_ext.unets.features.cache import _Step
    from sd_ext.unets.inside import merging

    match, shallow = merging.match, _Step.shallow

    def matched(*args: Any, **kwargs: Any) -> Any:
        found = match(*args, **kwargs)
        recorder.acted += found.moved.shape[1] > 0
        return found

    def reused(*args: Any) -> Any:
        found = shallow(*args)
        recorder.acted += found is not None
        return found

    merging.match, _Step.shallow = matched, reused  # type: ignore[method-assign]


def evaluating(network: type) -> None:
    """New networks of a class are in evaluation mode. The pipelines' tests leave theirs in training mode, where no
    features are reused.
    """
    begin = network.__init__

    def begun(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        self.eval()

    network.__init__ = functools.wraps(begin)(begun)  # type: ignore[misc]


def stand_in() -> None:
    """A tokenizer of letters for the one of the Hub."""
    import string

    from transformers import CLIPTokenizer

    letters = string.ascii_lowercase + string.digits + string.punctuation
    pieces = ["<|startoftext|>", "<pad>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary, fetched = {piece: number for number, piece in enumerate(pieces)}, CLIPTokenizer.from_pretrained

    def from_pretrained(name: Any, *args: Any, **kwargs: Any) -> Any:
        if name == TOKENIZER:
            return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
        return fetched(name, *args, **kwargs)

    CLIPTokenizer.from_pretrained = from_pretrained  # type: ignore[method-assign]


def inside(way: str, result: str) -> None:
    """In the checkout's folder: put our class in, run, and write what came out."""
    sys.path = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).parent]
    import diffusers
    import pytest
    import torch

    recorder = Recorder(diffusers.UNet2DConditionModel)
    if way != "plain":
        import sd_ext

        diffusers.UNet2DConditionModel = ours = getattr(sd_ext, WAYS[way][0])
        if way == "cached":
            evaluating(ours)
        watch(recorder)
    torch.nn.modules.module.register_module_forward_hook(recorder.see)
    options = ["-q", "--tb=short", "-p", "no:xdist", "-p", "no:cacheprovider", "-W", "ignore", "-k", WITHOUT]
    stand_in()
    pytest.main([*WAYS[way][1], *options], plugins=[recorder])
    Path(result).write_text(json.dumps(recorder.told), "utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["inside"]:
        inside(*sys.argv[2:])
    else:
        told = {way: run(Path(os.environ[CHECKOUT]), way) for way in WAYS}
        found = {way: differences(told["plain"], told[way], way) for way in WAYS if way != "plain"}
        counts = {way: sum(each["outcome"] == "passed" for each in tests.values()) for way, tests in told.items()}
        print(json.dumps({"passed": counts, **found}, indent=1))
