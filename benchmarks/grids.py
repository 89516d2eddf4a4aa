"""Where do ten steps fall? Every grid on Stable Diffusion's schedule, as a picture: docs/images/grids.png.

python benchmarks/grids.py [--steps 10]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import numpy as np

import sd_ext
from sd_ext.schedulers import NoiseSchedule, list_grids
from sd_ext.schedulers.grids import Grid

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "grids.png"
PUBLISHED = ("ays", "ays_sdxl", "gits")
KINDS = {  # colours and shapes that are told apart without colour vision
    "a formula in t": ("#0072B2", "o"),
    "a formula in sigma": ("#D55E00", "s"),
    "a published list": ("#009E73", "D"),
}
TIMESTEPS = (999, 900, 800, 700, 600, 500, 400, 300, 200, 100, 50, 10, 0)


def kind(grid: Grid) -> str:
    if grid.name in PUBLISHED:
        return "a published list"
    return "a formula in sigma" if grid.ratios else "a formula in t"


def sigmas(name: str, steps: int) -> np.ndarray:
    """sigma / alpha of the steps, without the clean end, as Euler places them."""
    scheduler = sd_ext.make_scheduler("euler", grid=name)
    scheduler.set_timesteps(steps)
    return scheduler.sigmas.numpy()[:-1]


def draw(steps: int) -> None:
    schedule = NoiseSchedule.from_config({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"})
    low, high = schedule.ratio_range
    order = list(KINDS)
    rows = sorted(list_grids(), key=lambda grid: (order.index(kind(grid)), -np.median(sigmas(grid.name, steps))))
    figure, axes = plt.subplots(figsize=(10, 0.3 * len(rows) + 1.9))
    for y, grid in enumerate(rows):
        colour, marker = KINDS[kind(grid)]
        axes.plot([high, low], [y, y], color="0.85", linewidth=1, zorder=1)
        axes.scatter(
            sigmas(grid.name, steps), [y] * steps, s=38, color=colour, marker=marker, edgecolor="white", linewidth=0.6,
            zorder=2, label=kind(grid) if y == 0 or kind(rows[y - 1]) != kind(grid) else None,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(high * 1.15, low / 1.15)
    ticks = (10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("sigma / alpha, log scale: from full noise (left) to a clean picture (right)")
    axes.set_yticks(range(len(rows)), [grid.name for grid in rows], family="monospace")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color="0.92", zorder=0)
    for side in ("left", "right"):
        axes.spines[side].set_visible(False)

    top = axes.secondary_xaxis("top")
    top.set_xscale("log")
    top.set_xticks(schedule.at(TIMESTEPS).ratio, [str(t) for t in TIMESTEPS], fontsize=8, color="0.35")
    top.set_xticks([], minor=True)
    top.set_xlabel("timestep", color="0.35")
    figure.suptitle(
        f"Where {steps} steps fall on Stable Diffusion's schedule", x=0.01, y=0.995, ha="left", weight="bold"
    )
    figure.legend(loc="upper right", ncols=len(KINDS), frameon=False, handletextpad=0.2, columnspacing=1.2)
    figure.tight_layout(rect=(0, 0, 1, 0.985))
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="network calls")
    draw(parser.parse_args().steps)
    print(f"wrote {PICTURE}")
