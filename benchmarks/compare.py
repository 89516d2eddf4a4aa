"""How long does a comparison take beside the same pictures drawn one by one?

    python benchmarks/compare.py [--repeats 3]

Four samplers at four numbers of calls on the embedded model: once as `sd-ext compare`, with and without the reference
of 100 calls, and as sixteen `sd-ext generate`, each in a fresh process. The processors' seconds are counted beside
those of the clock, since they hardly depend on what else the machine does.
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


def compared(reference: int) -> tuple[float, float]:
    """The grid, drawn anew."""
    with tempfile.TemporaryDirectory() as folder:
        names, counts = ",".join(SAMPLERS), ",".join(map(str, COUNTS))
        asked = ["compare", "--prompt", PROMPT, "--samplers", names, "--steps", counts, "--out", folder]
        return timed(*asked, "--reference", str(reference))


def singly(sampler: str, calls: int) -> tuple[float, float]:
    """One of its pictures by itself."""
    with tempfile.TemporaryDirectory() as folder:
        asked = ["generate", PROMPT, "--sampler", sampler, "--steps", str(calls), "--out", f"{folder}/a.png"]
        return timed(*asked)


def main() -> None:
    """Measure, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    grids: dict[str, list[tuple[float, float]]] = {"grid": [], "grid with reference": []}
    singles, cells = [], list(itertools.product(SAMPLERS, COUNTS))
    singly(*cells[0])  # so that files are in the system's cache
    for repeat in range(repeats):
        grids["grid"].append(compared(0))
        grids["grid with reference"].append(compared(100))
        singles += [singly(*cell) for cell in cells[repeat::repeats]]  # each cell once, between the grids
    one = [statistics.median(each) for each in zip(*singles, strict=True)]
    rows, found = [], {}
    rows.append(("16 single runs", 16 * one[0], 16 * one[1], 1.0))
    for name, times in grids.items():
        clock, used = (statistics.median(each) for each in zip(*times, strict=True))
        rows.append((name, clock, used, 16 * one[1] / used))
        found[name] = [{"clock": a, "processors": b} for a, b in times]
    found["single runs"] = [{"clock": a, "processors": b} for a, b in singles]
    spread = max(used for _, used in singles) / min(used for _, used in singles)
    lines = ["# 4 samplers x 4 counts beside 16 single runs", "", "| | clock, s | processors, s | times as fast |"]
    lines += ["| --- | --- | --- | --- |"]
    lines += [f"| {name} | {clock:.1f} | {used:.1f} | {ratio:.1f} |" for name, clock, used, ratio in rows]
    told = f"Medians of {repeats} grids, and of {len(singles)} single runs, times 16. One takes {one[1]:.1f} s of "
    told += f"the processors, the slowest {spread:.2f} times the quickest. How many times as fast: by the processors' "
    lines += ["", told + "seconds, since the machine had other work."]
    write("compare", {"repeats": repeats, "samplers": SAMPLERS, "counts": COUNTS, "seconds": found}, "\n".join(lines))


if __name__ == "__main__":
    main()
