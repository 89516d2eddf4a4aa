"""What does calibrating cost: how long, and in how much memory?

    python benchmarks/calibration_cost.py [--calls 8] [--guidance 7.5] [--pairs 16]

The embedded model, each in a fresh process: a batch of pictures as large as the fit's, drawn by the pipeline; the
greedy stage alone; and the whole fit. Seconds are of the fit with its teacher and report, without imports and loading.
Memory is the largest the process ever had.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from typing import Any

from _report import write

import sd_ext

PARTS = {"one batch drawn": None, "greedy stage alone": 0, "with the long stage": 3}
"""What is done -> how often the derivative is found; None draws."""


def once(part: str, given: argparse.Namespace) -> dict[str, float]:
    from diffusers import StableDiffusionPipeline

    from sd_ext.calibration.refine import Effort

    pipe = StableDiffusionPipeline.from_pretrained(sd_ext.pretrained_path())
    pipe.set_progress_bar_config(disable=True)
    began = time.perf_counter()
    if (derivatives := PARTS[part]) is None:
        pipe(["a cat"] * given.batch, num_inference_steps=given.calls, guidance_scale=given.guidance)
    else:
        with tempfile.TemporaryDirectory() as folder:
            sd_ext.calibrate(
                pipe, calls=(given.calls,), guidance=(given.guidance,), out=f"{folder}/out", pairs=given.pairs,
                effort=Effort(derivatives), batch=given.batch,
            )  # fmt: skip
    return {
        "seconds": time.perf_counter() - began,
        "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=8)
    parser.add_argument("--guidance", type=float, default=7.5)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--once", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        print(json.dumps(once(given.once, given)))
        return
    found: dict[str, Any] = {}
    for part in PARTS:
        ran = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--once", part], capture_output=True, check=True)
        found[part] = json.loads(ran.stdout.splitlines()[-1])
    drawn = found["one batch drawn"]["MB"]
    lines = [
        f"# A fit of {given.calls} calls at guidance {given.guidance:g} to {given.pairs} pairs of the embedded model\n",
        "| | seconds | memory, MB | of one batch's |", "|---|---|---|---|",
        *(f"| {k} | {v['seconds']:.0f} | {v['MB']:.0f} | {v['MB'] / drawn:.2f} |" for k, v in found.items()),
    ]  # fmt: skip
    write("calibration_cost", {"calls": given.calls, "guidance": given.guidance, "parts": found}, "\n".join(lines))


if __name__ == "__main__":
    main()
