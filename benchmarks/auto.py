"""Is `auto` the right default? Judged on problems that it was not chosen on.

    python benchmarks/auto.py --half choose      # what `auto` was chosen by
    python benchmarks/auto.py --half judge       # what is reported
    python benchmarks/auto.py --half judge --families mid sheet --seeds 1

Problems come in families: Gaussian mixtures in few and in many dimensions, near a curved two-dimensional sheet, with
heavy tails, with light ones, and trained networks: the embedded model, and a U-Net that draws Fashion-MNIST in pixels
(`fashion_model.py`, given by --fashion). Each is guided towards one of its classes by 1, 3, 5 and 7.5, and solved to
1e-8, networks by 400 calls. The halves share neither seeds nor sizes nor captions. A cell is a problem, a guidance and
a number of calls from 4 to 50, for networks to 12; in each, `auto`, told the guidance, stands beside every Diffusers
setting of `error_vs_calls.py`, and in the half for choosing beside what it might be.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from _report import write
from error_vs_calls import Setting, error, theirs
from problems import SCHEDULE, SD, Problem, solve
from scipy.integrate import solve_ivp

import sd_ext
from sd_ext.schedulers.schedule import Levels
from tests.schedulers.mixture import Mixture

COUNTS = (4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50)
MOST_OF_NETWORKS = 12
"""Networks are slow: they are measured up to so many calls."""
GUIDANCE = (1.0, 3.0, 5.0, 7.5)
BESIDE = "DPM++ 2M karras"
CLASSES = 4
STARTS = 48
HALVES = {"choose": 0, "judge": 100}
"""Where the seeds of each half begin."""
MIXTURES = ("low", "mid", "sheet", "heavy", "light")
CAPTIONS = {
    "choose": ("red apple", "a cat", "an octopus", "a yellow star", "two fish", "a house at night"),
    "judge": ("a green tree", "a rocket", "three mushrooms", "a dog on a blue background", "a car", "an elephant"),
}
NAMES = (
    *("dpm++ 2m", "dpm++ 2s", "dpm++ 3m", "dpm++ 3m exact", "unipc", "unipc 3", "unipc eps", "unipc 3 eps"),
    *("ipndm", "deis", "res multistep", "gradient estimation"),
)
GRIDS = ("karras", "lambda_uniform", "beta57", "exponential", "trailing", "ays_sdxl")


# ---- problems --------------------------------------------------------------------------------------------------------


def data(family: str, seed: int) -> Mixture:
    """A mixture of a family, of about unit variance."""
    r = np.random.default_rng(seed)
    if family == "low":
        return Mixture.random(int(r.integers(8, 20)), int(r.integers(2, 5)), seed)
    if family == "mid":
        return Mixture.random(int(r.integers(20, 50)), int(r.integers(10, 32)), seed)
    if family == "sheet":
        count, u = 120, r.uniform(-1.7, 1.7, (120, 2))
        turn = np.linalg.qr(r.standard_normal((16, 16)))[0]
        means = np.zeros((count, 16))
        means[:, :2], means[:, 2], means[:, 3] = u, 0.7 * np.sin(2 * u[:, 0]), 0.5 * np.cos(2 * u[:, 1])
        return Mixture(np.full(count, 1 / count), means @ turn, r.uniform(0.08, 0.15, count))
    if family == "heavy":
        scales = 1 / np.sqrt(r.chisquare(3, 40) / 3)
        return Mixture(np.full(40, 1 / 40), 0.8 * r.standard_normal((40, 12)) * scales[:, None], 0.3 * scales)
    if family == "light":
        return Mixture(np.full(60, 1 / 60), r.uniform(-1.6, 1.6, (60, 8)), r.uniform(0.1, 0.2, 60))
    raise ValueError(family)


def mixture(family: str, seed: int, guidance: float) -> Problem:
    """Starts guided towards one of four classes: components that lie together along a random direction."""
    whole, r = data(family, seed), np.random.default_rng(seed + 1000)
    dims = whole.means.shape[1]
    order = np.argsort(whole.means @ r.standard_normal(dims))
    parts = [
        Mixture(whole.weights[some] / whole.weights[some].sum(), whole.means[some], whole.stds[some])
        for some in np.array_split(order, CLASSES)
    ]
    told = np.arange(STARTS) % CLASSES

    def eps_of(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        free, with_class = whole.eps(x, alpha, sigma), np.empty_like(x)
        for number, part in enumerate(parts):
            with_class[told == number] = part.eps(x[told == number], alpha, sigma)
        return free + guidance * (with_class - free)

    levels = SCHEDULE.at([999.0]).then(SCHEDULE.at_lambda([8.0]))
    start = r.standard_normal((STARTS, dims)) * float(levels.sigma[0])

    def slope(log_ratio: float, y: np.ndarray) -> np.ndarray:
        ratio = np.exp(log_ratio)
        alpha = 1 / np.sqrt(1 + ratio**2)
        return (ratio * eps_of(alpha * y.reshape(start.shape), alpha, alpha * ratio)).ravel()

    ends = np.log(levels.ratio[0]), np.log(levels.ratio[-1])
    done = solve_ivp(slope, ends, (start / levels.alpha[0]).ravel(), method="DOP853", rtol=1e-8, atol=1e-9)
    end = levels.alpha[-1] * done.y[:, -1].reshape(start.shape)

    def eps(x: torch.Tensor, t: float, _: Levels) -> torch.Tensor:
        level = SCHEDULE.at([t])
        return torch.from_numpy(eps_of(x.numpy(), float(level.alpha[0]), float(level.sigma[0])))

    return Problem(family, f"{family} {seed}", eps, torch.from_numpy(start), torch.from_numpy(end))


def network(
    title: str, v: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], start: torch.Tensor, guidance: float
) -> Problem:
    """A network's own solution of 400 calls is the end.

    Args:
        v: (x twice, timestep) -> v of the unconditional and of the guided half.
        start: N(0, I).
    """

    def eps(x: torch.Tensor, t: float, level: Levels) -> torch.Tensor:
        free, told = v(torch.cat([x, x]).float(), torch.tensor(t)).to(x.dtype).chunk(2)
        return float(level.alpha[0]) * (free + guidance * (told - free)) + float(level.sigma[0]) * x

    reference = sd_ext.make_scheduler("dpm++ 3m exact", SD, grid="karras")
    reference.set_timesteps(400)
    end = solve(Problem("", "", eps, start, start), reference)
    return Problem(title, title, eps, start, end)


def embedded(half: str, seed: int, guidance: float) -> Problem:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(sd_ext.pretrained_path())
    words, nothing = pipe.encode_prompt(list(CAPTIONS[half]), "cpu", 1, True)
    both, config = torch.cat([nothing, words]), pipe.unet.config
    shape = (len(words), config["in_channels"], config["sample_size"], config["sample_size"])
    start = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return network(f"embedded {seed}", lambda x, t: pipe.unet(x, t, encoder_hidden_states=both).sample, start, guidance)


def fashion(folder: Path, seed: int, guidance: float) -> Problem:
    from fashion_model import NO_CLASS, load_unet

    unet, told = load_unet(folder), torch.arange(12) % 10
    both = torch.cat([torch.full_like(told, NO_CLASS), told])
    start = torch.randn(12, 4, 14, 14, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return network(f"fashion {seed}", lambda x, t: unet(x, t, both).sample, start, guidance)


# ---- measuring -------------------------------------------------------------------------------------------------------


def candidates() -> Iterator[Setting]:
    """What `auto` might be."""
    for name, grid in itertools.product(NAMES, GRIDS):
        yield Setting("sd_ext", f"{name} {grid}", name, {"grid": grid, "clip_sample": False})


Rows = dict[str, list[float | None]]
"""Setting -> its errors by count."""


def measure(
    family: str, half: str, seed: int, guidance: float, fashion_folder: str | None, known: Rows
) -> tuple[str, Rows]:
    """(problem, errors) in a process of its own, on one thread.

    Args:
        known: what an earlier run measured; `auto` is measured anew.
    """
    warnings.simplefilter("ignore")
    diffusers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if family == "embedded":
        problem = embedded(half, seed, guidance)
    elif family == "fashion":
        problem = fashion(Path(str(fashion_folder)), seed, guidance)
    else:
        problem = mixture(family, seed, guidance)
    auto = Setting("sd_ext", "auto", "auto", {"clip_sample": False, "guidance_scale": guidance})
    settings = [*theirs(), auto, *(candidates() if half == "choose" else ())]
    counts = COUNTS if family in MIXTURES else COUNTS[: COUNTS.index(MOST_OF_NETWORKS) + 1]
    rows = {
        name: known.get(name) if s is not auto and name in known else [error(s, calls, problem) for calls in counts]
        for name, s in ((f"{s.package}: {s.label}", s) for s in settings)
    }
    return f"{problem.title}, guidance {guidance:g}", rows


def cells(measured: dict[str, dict[str, list]]) -> Iterator[tuple[str, int, dict[str, float]]]:
    """(problem, count, setting -> its error) of every cell."""
    for name, rows in measured.items():
        for i, calls in enumerate(COUNTS[: len(rows["sd_ext: auto"])]):
            yield name, calls, {label: row[i] for label, row in rows.items() if row[i] is not None}


def bars(measured: dict[str, dict[str, list]]) -> dict[str, Any]:
    """`auto` beside DPM++ 2M Karras, beside each cell's best Diffusers setting, and beside the best single one."""
    every, auto, plain = [*cells(measured)], "sd_ext: auto", f"diffusers: {BESIDE}"
    ratios = np.array([each[auto] / each[plain] for _, _, each in every])
    theirs_of = [{k: v for k, v in each.items() if k.startswith("diffusers")} for _, _, each in every]
    of_best = np.array([each[auto] / min(t.values()) for (_, _, each), t in zip(every, theirs_of, strict=True)])
    labels = {label for t in theirs_of for label in t}
    typical = {label: float(np.median([t.get(label, np.inf) / min(t.values()) for t in theirs_of])) for label in labels}
    single = min(typical, key=lambda label: typical[label])
    of_single = np.array([each[auto] / each.get(single, np.inf) for _, _, each in every])
    worst = sorted(zip(ratios, every, strict=True), key=lambda each: -each[0])[:12]
    return {
        "cells": len(every), "median": float(np.median(ratios)), "worst": float(ratios.max()),
        "above_1.05": int((ratios > 1.05).sum()), "best_of_each_cell": float((of_best <= 1).mean()),
        "single": single, "best_single": float((of_single <= 1).mean()),
        "worst_cells": [{"problem": n, "calls": c, "ratio": float(r)} for r, (n, c, _) in worst],
    }  # fmt: skip


def report(half: str, found: dict[str, Any], measured: dict[str, dict[str, list]]) -> str:
    lines = [
        f"# `auto` on the problems of the half “{half}”", "",
        f"{found['cells']} cells. Beside Diffusers' {BESIDE}: median {found['median']:.2f}, worst "
        f"{found['worst']:.2f}, above 1.05 in {found['above_1.05']}. At or below the best single Diffusers setting "
        f"({found['single'].partition(': ')[2]}) in {found['best_single']:.0%}, at or below the best of 34 settings, "
        f"each cell's own, in {found['best_of_each_cell']:.0%}.", "",
        "Error of `auto` / that of " + BESIDE + ":", "",
        "| problem | " + " | ".join(map(str, COUNTS)) + " |", "|---" * (len(COUNTS) + 1) + "|",
    ]  # fmt: skip
    for name, rows in measured.items():
        plain, auto = rows[f"diffusers: {BESIDE}"], rows["sd_ext: auto"]
        empty = " | " * (len(COUNTS) - len(auto))
        lines.append(
            f"| {name} | " + " | ".join(f"{a / p:.2f}" for a, p in zip(auto, plain, strict=True)) + empty + " |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--half", choices=HALVES, default="judge")
    parser.add_argument("--families", nargs="+", default=[*MIXTURES, "embedded"])
    parser.add_argument("--seeds", type=int, default=2, help="problems of each family of mixtures; networks are one")
    parser.add_argument("--fashion", help="folder that fashion_model.py wrote; adds the family fashion")
    parser.add_argument(
        "--keep",
        type=Path,
        help="a JSON file to put every error into; what is in it is not measured again, but for `auto`",
    )
    options = parser.parse_args()
    families = [*options.families, *(["fashion"] if options.fashion else [])]
    asked = [
        (family, options.half, HALVES[options.half] + 10 * place + number, guidance, options.fashion)
        for place, family in enumerate(families) for number in range(options.seeds if family in MIXTURES else 1)
        for guidance in GUIDANCE
    ]  # fmt: skip
    kept = json.loads(options.keep.read_text()) if options.keep and options.keep.exists() else {}
    known = [kept[key][1] if (key := json.dumps(each[:4])) in kept else {} for each in asked]
    with ProcessPoolExecutor(int(os.environ.get("WORKERS", os.cpu_count() or 1)), get_context("spawn")) as pool:
        for each, found in zip(asked, pool.map(measure, *zip(*asked, strict=True), known), strict=True):
            kept[json.dumps(each[:4])] = found
            print(found[0], flush=True)
            if options.keep:
                options.keep.write_text(json.dumps(kept))
    measured = dict(kept[json.dumps(each[:4])] for each in asked)
    found = bars(measured)
    result = {**found, "counts": COUNTS, "errors": measured}
    write(f"auto_{options.half}", result, report(options.half, found, measured))


if __name__ == "__main__":
    main()
