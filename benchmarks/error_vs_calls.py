"""Error against network calls, beside every comparable Diffusers setting, on problems with known ends.

    python benchmarks/error_vs_calls.py [--starts 256] [--keep] [--plot] [--problems embedded5 mixture24 ...]

The problems (problems.py): two Gaussian mixtures with exact scores, where the only error is the sampler's, and the
embedded model, at guidance 1.5, 5 and 7.5 and up to 12 calls, against its own 500-call solution. The error is the root
mean square distance to the known ends from the same starts, on Stable Diffusion's noise schedule. Beside the ratio of
our default to the best Diffusers setting stands its 95 % interval: both errors are taken anew over starts drawn with
replacement, 2000 times, the same starts for both. All settings of a count make the same number of network calls;
Diffusers' PNDM, which makes one more than asked, and Heun, which makes 2n - 1, are asked for fewer steps.
"""

from __future__ import annotations

import argparse
import json
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import diffusers
import matplotlib
import numpy as np
import torch
from _report import RESULTS, write
from problems import SD, Problem, embedded, mixture, solve
from rich.progress import track

import sd_ext

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COUNTS = (5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50)
DEFAULT = "auto"
"""The sampler that the README recommends; it brings its grid, and is told the guidance."""

FLAGS = {
    "trailing": {"timestep_spacing": "trailing"},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
}
THEIRS = {
    "Euler": ("EulerDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "DPM++ 2S": ("DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    "DEIS-3": ("DEISMultistepScheduler", {"solver_order": 3}),
    "UniPC-2": ("UniPCMultistepScheduler", {"solver_order": 2}),
    "UniPC-3": ("UniPCMultistepScheduler", {"solver_order": 3}),
}
OURS = ("dpm++ 2m", "dpm++ 2s", "ipndm", "unipc bh1", "unipc eps", "unipc 3 eps")
GRIDS = ("karras", "lambda_uniform", "beta57", "ays_sdxl")
PROBLEMS = ("embedded1.5", "embedded5", "embedded7.5", "mixture24", "mixture16")


@dataclass(frozen=True)
class Setting:
    """A sampler with its grid, in one of the two packages."""

    package: str
    label: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def make(self, calls: int):
        """A scheduler for so many network calls, or None where it cannot make exactly so many."""
        if self.package == "sd_ext":
            scheduler = sd_ext.make_scheduler(self.name, SD, **self.options)
        else:
            scheduler = getattr(diffusers, self.name)(**SD, **self.options)
            calls = {"PNDMScheduler": calls - 1, "HeunDiscreteScheduler": (calls + 1) // 2}.get(self.name, calls)
        scheduler.set_timesteps(calls)
        return scheduler


def theirs() -> Iterator[Setting]:
    yield Setting("diffusers", "DDIM trailing", "DDIMScheduler", {"clip_sample": False, **FLAGS["trailing"]})
    yield Setting("diffusers", "PNDM leading", "PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1})
    for label, (name, options) in THEIRS.items():
        for grid, flags in FLAGS.items():
            if name == "DPMSolverSinglestepScheduler" and grid == "trailing":  # it has no such spacing
                yield Setting("diffusers", f"{label} linspace", name, options)
            else:
                yield Setting("diffusers", f"{label} {grid}", name, {**options, **flags})


def ours(guidance: float) -> Iterator[Setting]:
    yield Setting("sd_ext", DEFAULT, DEFAULT, {"clip_sample": False, "guidance_scale": guidance})
    for name in OURS:
        for grid in GRIDS:
            yield Setting("sd_ext", f"{name} {grid}", name, {"grid": grid, "clip_sample": False})


def counts_of(problem: Problem) -> tuple[int, ...]:
    """Networks are slow: they are measured up to 12 calls."""
    return COUNTS[: COUNTS.index(12) + 1] if problem.name == "embedded" else COUNTS


def end(setting: Setting, calls: int, problem: Problem) -> torch.Tensor | None:
    """Where a setting arrives, or None where it cannot make exactly so many calls."""
    try:
        scheduler = setting.make(calls)
        if len(scheduler.timesteps) != calls:
            return None
        return solve(problem, scheduler)
    except (IndexError, AssertionError):  # Diffusers looks repeated timesteps up wrongly and loses its place
        return None
    except sd_ext.errors.InputError:  # a grid that this sampler refuses
        return None


def error(setting: Setting, calls: int, problem: Problem) -> float | None:
    reached = end(setting, calls, problem)
    value = np.nan if reached is None else problem.rmse(reached)
    return value if np.isfinite(value) else None


def interval(ours: torch.Tensor, theirs: torch.Tensor, problem: Problem) -> list[float]:
    """The 95 % interval of the ratio of two root mean square errors, over starts drawn anew."""
    squares = [
        (reached.double() - problem.end.double()).pow(2).flatten(1).mean(1).numpy() for reached in (ours, theirs)
    ]
    drawn = np.random.default_rng(0).integers(0, len(squares[0]), (2000, len(squares[0])))
    ratios = np.sqrt(squares[0][drawn].mean(1) / squares[1][drawn].mean(1))
    return [float(value) for value in np.percentile(ratios, [2.5, 97.5])]


def intervals(errors: dict, settings: list[Setting], problem: Problem) -> list[list[float]]:
    """At each count that of our default's error to the best Diffusers setting's."""
    by_label = {(each.package, each.label): each for each in settings}
    found = []
    for i, calls in enumerate(counts_of(problem)):
        ours, theirs = by_label["sd_ext", DEFAULT], by_label["diffusers", best(errors["diffusers"], i)[1]]
        reached = end(ours, calls, problem), end(theirs, calls, problem)
        assert reached[0] is not None and reached[1] is not None
        found.append(interval(*reached, problem))
    return found


def finished(name: str, keep: bool) -> dict[str, dict[str, list[float | None]]]:
    """What the last run measured of a problem, for settings that are measured still; never the default."""
    path = RESULTS / "error_vs_calls.json"
    problems = json.loads(path.read_text()).get("problems", {}) if keep and path.exists() else {}
    return problems.get(name, {}).get("rmse", {"diffusers": {}, "sd_ext": {}})


def measure(name: str, starts: int, keep: bool) -> tuple[str, str, dict, list[list[float]]]:
    """(name, title, errors by package and setting, intervals) of one problem; a process of its own, on one thread."""
    warnings.simplefilter("ignore")
    diffusers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    guidance = float(name.removeprefix("embedded")) if name.startswith("embedded") else 1.0
    if name.startswith("embedded"):
        problem = embedded(guidance)
    else:
        problem = mixture(24, 16, starts, seed=0) if name == "mixture16" else mixture(40, 24, starts, seed=5)
    errors: dict[str, dict[str, list[float | None]]] = {"diffusers": {}, "sd_ext": {}}
    known = finished(name, keep)
    settings = [*theirs(), *ours(guidance)]
    for setting in track(settings, name):
        row = known[setting.package].get(setting.label) if setting.label != DEFAULT else None
        errors[setting.package][setting.label] = row or [error(setting, calls, problem) for calls in counts_of(problem)]
    return name, problem.title, errors, intervals(errors, settings, problem)


def best(rows: dict[str, list[float | None]], i: int) -> tuple[float, str]:
    return min((row[i], label) for label, row in rows.items() if row[i] is not None)


def summary(title: str, errors: dict, within: list[list[float]]) -> list[str]:
    default = errors["sd_ext"][DEFAULT]
    lines = [
        f"## {title}\n",
        "| calls | best Diffusers setting | | our default | ratio | its 95 % interval | our best | | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for i, calls in enumerate(COUNTS[: len(within)]):
        (their, their_label), (our, our_label) = best(errors["diffusers"], i), best(errors["sd_ext"], i)
        lines.append(
            f"| {calls} | {their:.4f} | {their_label} | {default[i]:.4f} | {default[i] / their:.2f} "
            f"| {within[i][0]:.2f} to {within[i][1]:.2f} | {our:.4f} | {our_label} | {our / their:.2f} |"
        )
    return [*lines, ""]


def everything(title: str, errors: dict) -> list[str]:
    lines = [f"### All settings: {title}\n"]
    counts = COUNTS[: len(errors["sd_ext"][DEFAULT])]
    lines += ["| setting | " + " | ".join(map(str, counts)) + " |", "|---" * (len(counts) + 1) + "|"]
    for package, rows in errors.items():
        for label, row in rows.items():
            cells = " | ".join("-" if v is None else f"{v:.4f}" for v in row)
            lines.append(f"| {package}: {label} | {cells} |")
    return [*lines, ""]


def plot(measured: list[tuple[str, dict]]) -> None:
    """Two panels a row, so that they can be read at the width of a page; colours that the colour-blind tell apart."""
    rows = (len(measured) + 1) // 2
    plt.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    figure, panels = plt.subplots(rows, 2, figsize=(9, 3.7 * rows), layout="constrained", squeeze=False)
    for axes in panels.flat[len(measured) :]:
        axes.remove()
    for axes, (title, errors) in zip(panels.flat, measured, strict=False):
        counts = COUNTS[: len(errors["sd_ext"][DEFAULT])]
        for package, colour, marker in (("diffusers", "0.45", "^"), ("sd_ext", "#0072B2", "o")):
            for row in errors[package].values():
                points = [(c, v) for c, v in zip(counts, row, strict=True) if v is not None]
                axes.plot(*zip(*points, strict=True), color=colour, alpha=0.1, linewidth=0.7)
            line = [best(errors[package], i)[0] for i in range(len(counts))]
            axes.plot(
                counts, line, color=colour, marker=marker, linewidth=1.5, label=f"best of {package} at each count"
            )
        axes.plot(counts, errors["sd_ext"][DEFAULT], color="#D55E00", marker="s", linewidth=2, label=DEFAULT)
        axes.set(xscale="log", yscale="log", title=title.replace(", ", ",\n", 1))
        axes.set_xticks(counts, [str(c) for c in counts])
        axes.minorticks_off()
        axes.grid(color="0.92")
        floor = min(best(errors["sd_ext"], i)[0] for i in range(len(counts)))
        axes.set_ylim(floor / 2, 3 * best(errors["diffusers"], 0)[0])
    for axes in panels[-1]:
        axes.set_xlabel("network calls")
    for axes in panels[:, 0]:
        axes.set_ylabel("RMSE to the known ends")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(RESULTS / "error_vs_calls.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=256, help="starting points on the mixtures")
    parser.add_argument("--keep", action="store_true", help="measure only the default and what the last run lacks")
    parser.add_argument("--problems", nargs="+", default=PROBLEMS, help="mixture16, mixture24, embeddedGUIDANCE")
    parser.add_argument("--plot", action="store_true", help="measure nothing; draw what was measured last")
    arguments = parser.parse_args()
    if arguments.plot:
        problems = json.loads((RESULTS / "error_vs_calls.json").read_text())["problems"].values()
        return plot([(problem["title"], problem["rmse"]) for problem in problems])
    with ProcessPoolExecutor(int(os.environ.get("WORKERS", os.cpu_count() or 1)), get_context("spawn")) as pool:
        count = len(arguments.problems)
        results = list(pool.map(measure, arguments.problems, [arguments.starts] * count, [arguments.keep] * count))
    measured = [(title, errors) for _, title, errors, _ in results]
    lines = ["RMSE to the known ends; ratios are to the best Diffusers setting of that count.\n"]
    lines += [line for _, title, errors, within in results for line in summary(title, errors, within)]
    lines += [line for pair in measured for line in everything(*pair)]
    plot(measured)
    problems = {
        name: {"title": title, "rmse": errors, "95 % interval of the default's ratio": within}
        for name, title, errors, within in results
    }
    write("error_vs_calls", {"counts": COUNTS, "starts": arguments.starts, "problems": problems}, "\n".join(lines))


if __name__ == "__main__":
    main()
