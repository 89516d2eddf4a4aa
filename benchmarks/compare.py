"""How long does a comparison take beside the same pictures drawn one by one?

    python benchmarks/compare.py [--repeats 3] [--singles 16]

Four samplers at four numbers of calls on the embedded model, once as `sd-ext compare` and once as `sd-ext generate`,
each in a fresh process. The processors' seconds are counted beside those of the clock, since they hardly depend on what
else the machine does.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time

from _report import write

SAMPLERS, COUNTS, PROMPT = ("euler", "dpm++ 2m karras", "unipc", "auto"), (4, 8, 12, 20), "a red apple"
COMMAND = [sys.executable, "-m", "sd_ext.cli"]


def timed(*arguments: str) -> tuple[float, float]:
    """Run the command: its seconds by the clock, and those of the processors."""
    before, started = os.times(), time.perf_counter()
    subprocess.run([*COMMAND, *arguments, "--quiet"], check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - started, used


def compared() -> tuple[float, float]:
    """The grid, drawn anew."""
    with tempfile.TemporaryDirectory() as folder:
        names, counts = ",".join(SAMPLERS), ",".join(map(str, COUNTS))
        asked = ["compare", "--prompt", PROMPT, "--samplers", names, "--steps", counts, "--out", folder]
        return timed(*asked, "--reference", "0")


def singly(sampler: str, calls: int) -> tuple[float, float]:
    """One of its pictures by itself."""
    with tempfile.TemporaryDirectory() as folder:
        asked = ["generate", PROMPT, "--sampler", sampler, "--steps", str(calls), "--out", f"{folder}/a.png"]
        return timed(*asked)


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="of the grid")
    parser.add_argument("--singles", type=int, default=16, help="pictures drawn alone, evenly out of the 16")
    asked = parser.parse_args()
    cells = list(itertools.product(SAMPLERS, COUNTS))
    chosen = [cells[round((k + 0.5) * len(cells) / asked.singles - 0.5)] for k in range(asked.singles)]
    grids, singles = [], []
    for repeat in range(asked.repeats):
        singles += [singly(*cell) for cell in chosen[repeat :: asked.repeats]]
        grids.append(compared())
        print(f"after {repeat + 1} of {asked.repeats}: grids {grids}, singles {singles}", file=sys.stderr)
    one = [statistics.mean(each) for each in zip(*singles, strict=True)]
    grid = [statistics.median(each) for each in zip(*grids, strict=True)]
    ratio = 16 * one[1] / grid[1]
    slowest, quickest = (pick(used for _, used in singles) for pick in (max, min))
    lines = ["# 4 samplers x 4 counts beside 16 single runs", ""]
    lines += ["| | clock, s | processors, s |", "| --- | --- | --- |"]
    lines += [f"| `sd-ext compare` | {grid[0]:.1f} | {grid[1]:.1f} |"]
    lines += [f"| 16 times `sd-ext generate` | {16 * one[0]:.1f} | {16 * one[1]:.1f} |", ""]
    lines += [f"The comparison takes 1/{ratio:.1f} of the processors' seconds. Median of {asked.repeats} grids, mean"]
    lines += [f"of {len(singles)} single runs, of {quickest:.1f} to {slowest:.1f} s of the processors each."]
    told = {"repeats": asked.repeats, "samplers": SAMPLERS, "counts": COUNTS, "grids": grids, "singles": singles}
    write("compare", told | {"ratio": ratio}, "\n".join(lines))


if __name__ == "__main__":
    main()
