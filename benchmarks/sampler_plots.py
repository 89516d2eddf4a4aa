"""What do the samplers of a family do with few network calls, and how fast do they get right? One picture a family,
docs/images/samplers/<family>.png.

python benchmarks/sampler_plots.py [family ...]

The samplers with CFG++, which are plain ones without guidance, have `guidance_plot.py`.

The data is a mixture of three Gaussians on a line, whose score is known. On a line the exact solution is known as well:
trajectories do not cross, so each keeps its quantile of the distribution, at every noise level.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import matplotlib
import numpy as np
from PIL import Image
from scipy.special import ndtr

import sd_ext
from sd_ext.schedulers.find import find_sampler
from sd_ext.schedulers.samplers import FAMILIES
from sd_ext.schedulers.schedule import Levels
from sd_ext.schedulers.table import P0, STASH, Table, X

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.schedulers.mixture import Mixture

IMAGES = Path(__file__).parent.parent / "docs" / "images" / "samplers"
DATA = Mixture(np.array([0.3, 0.45, 0.25]), np.array([[-1.3], [0.1], [1.5]]), np.array([0.25, 0.3, 0.25]))

COUNTS = (6, 12, 18, 24, 36, 48, 72, 96, 144, 192, 288)
"""Network calls, multiples of 6: whole steps for samplers of 1, 2 and 3 calls a step."""
NOISY_COUNTS = (6, 12, 18, 24, 36, 48, 72, 96)
FEW_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16)
STARTS, DRAWS = 200, 100_000
TRACED = (0.02, 0.11, 0.22, 0.34, 0.46, 0.58, 0.7, 0.81, 0.92, 0.985)
"""Quantiles of the trajectories drawn."""

TRACES = {
    "first_order": ("euler", "euler a"),
    "heun": ("heun", "heun churn"),
    "adams": ("plms",),
    "deis": ("deis",),
    "dpm_solver": ("dpm++ 2m", "dpm++ 2m sde"),
    "singlestep": ("dpm++ 2s",),
    "exponential_rk": ("res 2s", "dpm++ sde"),
    "er_sde": ("er sde",),
    "unipc": ("unipc",),
    "flow": ("flow euler",),
}
"""Samplers whose trajectories are drawn; elsewhere the family's first of either kind."""
CALLS = {"restart": 20, "consistency": 4, "heun": 10, "singlestep": 10, "exponential_rk": 10, "sa_solver": 12,
         "er_sde": 12, "ddpm": 12, "res_multistep": 8}  # fmt: skip
"""Calls of the trajectories drawn, if not 8."""
OWN_GRID = {"auto", "auto low guidance"}
"""Samplers that choose their grid, and are drawn on it."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7A5195")
MARKERS = "osD^vPX*"  # colours and shapes that are told apart without colour vision
STYLES = ("-", "--", "-.", (0, (1, 1)))
GREY, EXACT = "0.45", "0.25"


# ---- the problem -----------------------------------------------------------------------------------------------------


def cdf(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """Share of the data's noisy values at a level below x."""
    std = np.sqrt((alpha * DATA.stds) ** 2 + sigma**2)
    return ndtr((x[..., None] - alpha * DATA.means[:, 0]) / std) @ DATA.weights


def quantile(share: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """The reverse of `cdf`, by halving."""
    low, high = np.full(np.shape(share), -12.0), np.full(np.shape(share), 12.0)
    for _ in range(60):
        middle = (low + high) / 2
        below = cdf(middle, alpha, sigma) < share
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return (low + high) / 2


def denoiser(x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
    """What a diffusion model learns: the mean of x0, given x."""
    return DATA.x0(x[:, None], alpha, sigma)[:, 0]


_FINE = np.linspace(-6.0, 6.0, 40_001)


def jump(x: np.ndarray, alpha: float, sigma: float, row: np.ndarray, alpha_next: float) -> np.ndarray:
    """What the samplers of consistency models hope for: the x0 with which a row that is a step along the trajectory
    (to sigma = 0 for LCM, for TCD to below the next level) ends on it exactly.
    """
    end = np.interp(cdf(x, alpha, sigma), cdf(_FINE, alpha_next, row[X] * sigma), _FINE)
    return (end - row[X] * x) / row[P0]


def run(table: Table, x: np.ndarray, seed: int = 0, *, exact: bool = False) -> list[np.ndarray]:
    """x at every level of a table, with the `denoiser` or, `exact`, with a network whose every `jump` is right."""
    rng, levels = np.random.default_rng(seed), table.levels
    slots = np.zeros((table.rows.shape[2], *x.shape))
    slots[X] = x
    path = [x]
    for i, row in enumerate(table.rows):
        alpha, sigma = levels.alpha[i], levels.sigma[i]
        slots[P0 + 1 : -1] = slots[P0:-2].copy()
        x0 = jump(slots[X], alpha, sigma, row[X], levels.alpha[i + 1]) if exact else denoiser(slots[X], alpha, sigma)
        slots[P0] = x0 if table.basis == "x0" else (slots[X] - alpha * x0) / sigma
        slots[-1] = rng.standard_normal(x.shape) if row[:, -1].any() else 0.0
        slots[: STASH + 1] = np.tensordot(row, slots, axes=1)
        path.append(slots[X].copy())
    return path


def table(name: str, calls: int) -> Table:
    """On Karras's grid, or the sampler's own, to the least trained noise."""
    info, _ = find_sampler(name)
    options: dict = {"final_sigmas_type": "sigma_min"}
    if "shift" in info.cls._options:
        options |= {"prediction_type": "flow_prediction"}
    elif info.order is not None:
        grid = None if name in OWN_GRID else info.options.get("grid", "karras")
        options |= {"grid": grid, "lower_order_final": False}
    known = {key: value for key, value in options.items() if key in info.cls._options}
    scheduler = sd_ext.make_scheduler(name, **known)
    scheduler.set_timesteps(calls)
    return scheduler.table()


def error(name: str, calls: int) -> float:
    """Root of the mean square, over trajectories, of the distance to the exact end."""
    made = table(name, calls)
    levels = made.levels
    start, exact = (even(STARTS, levels.alpha[i], levels.sigma[i]) for i in (0, -1))
    return float(np.sqrt(np.mean((run(made, start)[-1] - exact) ** 2)))


@lru_cache
def even(n: int, alpha: float, sigma: float) -> np.ndarray:
    """n draws that are distributed as evenly as can be, rising."""
    return quantile((np.arange(n) + 0.5) / n, alpha, sigma)


def distance(x: np.ndarray, levels: Levels) -> float:
    """Wasserstein-1 between draws and the exact distribution at the end."""
    return float(np.mean(np.abs(np.sort(x) - even(len(x), levels.alpha[-1], levels.sigma[-1]))))


def distribution(name: str, calls: int, *, exact: bool = False) -> float:
    """`distance` of a sampler's ends, from starts that are exactly distributed."""
    made = table(name, calls)
    levels = made.levels
    return distance(run(made, even(DRAWS, levels.alpha[0], levels.sigma[0]), calls, exact=exact)[-1], levels)


def floor() -> float:
    """What `distance` of so many independent exact draws is, in the mean."""
    levels = table("ddpm", 6).levels
    share = np.random.default_rng(5).random((4, DRAWS))
    return float(np.mean([distance(quantile(s, levels.alpha[-1], levels.sigma[-1]), levels) for s in share]))


# ---- panels ----------------------------------------------------------------------------------------------------------


def style(i: int, lines: int) -> dict:
    """Later lines are thinner, so that one that lies on another shows it."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "marker": MARKERS[i % len(MARKERS)],
        "linestyle": STYLES[i % len(STYLES)],
        "markersize": 7.0 - 2.5 * i / max(lines, 4),
        "linewidth": 2.1 - 0.7 * i / max(lines, 4),
        "markeredgewidth": 0,
    }


def shade(axes: Axes, across: np.ndarray, levels: Levels, low: float, high: float) -> None:
    """The exact distribution at every level, each scaled to its maximum."""
    x = np.linspace(low, high, 160)
    std = np.sqrt((levels.alpha[:, None] * DATA.stds) ** 2 + levels.sigma[:, None] ** 2)  # (levels, components)
    off = x[:, None, None] - levels.alpha[:, None] * DATA.means[:, 0]
    density = (np.exp(-0.5 * (off / std) ** 2) / std) @ DATA.weights  # (x, levels)
    density /= density.max(0)
    axes.pcolormesh(across, x, density, cmap="Greys", vmin=0, vmax=3.2, shading="gouraud", rasterized=True)


def trace(axes: Axes, name: str, calls: int, *, exact: bool = False) -> None:
    """A few trajectories of a sampler over the exact distribution, beside the exact ones if it is deterministic."""
    made = table(name, calls)
    levels, flow = made.levels, bool(made.levels.alpha[0] == 0)
    schedule = sd_ext.make_scheduler(name, **({"prediction_type": "flow_prediction"} if flow else {})).schedule
    across = (lambda at: at.sigma) if flow else (lambda at: at.ratio)
    start, end = float(across(levels).max()), float(levels.ratio[-1])
    steps = np.linspace(start, end, 240) if flow else np.geomspace(start, end, 240)
    fine = Levels(steps * schedule.t_max, 1 - steps, steps) if flow else schedule.at_lambda(-np.log(steps))
    shade(axes, across(fine), fine, -2.9, 2.9)
    share = np.array(TRACED)
    if not made.stochastic:
        solution = np.array([quantile(share, a, s) for a, s in zip(fine.alpha, fine.sigma, strict=True)])
        axes.plot(across(fine), solution, color=EXACT, linewidth=1.0)
        axes.plot([], [], color=EXACT, linewidth=1.0, label="exact")
    path = np.array(run(made, quantile(share, levels.alpha[0], levels.sigma[0]), 4, exact=exact))
    stage = np.zeros(len(levels)) if levels.stage is None else np.append(levels.stage[: made.calls], 0)
    main, colour = stage == 0, COLOURS[1 if made.stochastic else 0]
    points = across(levels)
    jumps = made.stochastic and bool(np.any(np.diff(points[main]) > 0))
    axes.plot(points[main], path[main], color=colour, linewidth=0.8 if jumps else 1.1, alpha=0.9)
    axes.plot(points[main], path[main], "o", color=colour, markersize=3.6, markeredgewidth=0)
    axes.plot([], [], "o-", color=colour, markersize=3.6, linewidth=1.1, label=f"{name}, {calls} calls")
    if not (main.all() or made.stochastic):
        inner = {"color": "white", "markersize": 3.4, "markeredgecolor": colour, "markeredgewidth": 0.8}
        axes.plot(points[~main], path[~main], "o", **inner)
        axes.plot([], [], "o", **inner, label="inner calls")
    if flow:
        axes.set_xlim(start + 0.02, -0.02)
        axes.set_xlabel("sigma: from full noise (left) to clean (right)")
    else:
        axes.set_xscale("log")
        axes.set_xlim(start * 1.12, end / 1.12)
        ticks = (10, 3, 1, 0.3, 0.1, 0.03)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_xlabel("sigma / alpha: from full noise (left) to clean (right)")
    axes.set_ylim(-2.9, 3.9)
    axes.set_ylabel("x")
    axes.legend(loc="upper center", ncols=3, frameon=False, fontsize=8.5, handlelength=1.6, columnspacing=1.2)


def references(axes: Axes, orders: Sequence[int], lines: dict[str, list[float]], at: dict[str, int], counts) -> None:
    """Slopes of these orders, each a little below the best line of its order at its last point."""
    for order in sorted(set(orders)):
        best = min((values for name, values in lines.items() if at[name] == order), key=lambda v: v[len(v) * 3 // 4])
        anchor = len(counts) * 3 // 4
        y = 0.45 * best[anchor] * (counts[anchor] / np.array(counts)) ** order
        shown = np.arange(len(counts)) >= anchor - 3
        axes.plot(np.array(counts)[shown], y[shown], color="0.6", linewidth=1.0, linestyle=(0, (4, 2)), zorder=1)
        axes.annotate(f"order {order}", (counts[-1], y[-1]), (4, -1), textcoords="offset points", fontsize=8,
                      color=GREY, va="center", annotation_clip=False)  # fmt: skip


def curves(axes: Axes, lines: dict[str, list[float]], counts: Sequence[int]) -> None:
    for i, (name, values) in enumerate(lines.items()):
        axes.plot(counts, values, label=name, **style(i, len(lines)))
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = [tick for tick in (1, 2, 3, 4, 6, 8, 12, 16, 24, 48, 96, 192) if counts[0] <= tick <= counts[-1]]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.grid(color="0.92", linewidth=0.8)
    axes.set_xlabel("network calls")


def deterministic(axes: Axes, infos: Sequence) -> None:
    lines = {info.name: [error(info.name, n) for n in COUNTS] for info in infos}
    curves(axes, lines, COUNTS)
    axes.set_ylabel("error of x at the end")
    references(axes, [i.order for i in infos], lines, {i.name: i.order for i in infos}, COUNTS)
    axes.legend(loc="lower left", frameon=False, fontsize=8.5, handlelength=2.4, labelspacing=0.25)


def stochastic(axes: Axes, infos: Sequence, least: float) -> None:
    lines = {info.name: [distribution(info.name, n) for n in NOISY_COUNTS] for info in infos}
    curves(axes, lines, NOISY_COUNTS)
    noise_floor(axes, least)
    axes.set_ylabel("distance of the distributions")
    axes.legend(loc="upper right", frameon=False, fontsize=8.5, handlelength=2.4, labelspacing=0.25)


def noise_floor(axes: Axes, least: float) -> None:
    axes.axhline(least, color="0.6", linewidth=1.0, linestyle=(0, (1, 2)))
    text = f"{DRAWS:,} exact draws".replace(",", " ")
    axes.annotate(text, (0.02, least), (0, -10), xycoords=("axes fraction", "data"), textcoords="offset points",
                  fontsize=8, color=GREY)  # fmt: skip
    axes.set_ylim(bottom=least / 2)


def models(axes: Axes, infos: Sequence, least: float) -> None:
    """For samplers without an order: with the network they are made for, and with an ordinary one."""
    lines = {
        f"{info.name}, {kind}": [distribution(info.name, n, exact=kind == "its own model") for n in FEW_COUNTS]
        for kind in ("its own model", "an ordinary one")
        for info in infos
    }
    curves(axes, lines, FEW_COUNTS)
    noise_floor(axes, least)
    axes.set_ylabel("distance of the distributions")
    axes.set_ylim(top=4)
    axes.legend(loc="upper right", frameon=False, fontsize=8.5, handlelength=2.4, labelspacing=0.25)


# ---- pictures --------------------------------------------------------------------------------------------------------


def small(picture: Image.Image) -> Image.Image:
    """With 256 colours: those of the lines and their blends with white, and what else the picture has most of."""
    share = np.linspace(1, 0, 13)[:, None, None]
    lines = np.array([to_rgb(colour) for colour in COLOURS])
    own = np.round(255 * (share * lines + (1 - share))).astype(np.uint8).reshape(-1)
    most = picture.quantize(256 - len(own) // 3, Image.Quantize.MEDIANCUT).getpalette()
    palette = np.array([*own.tolist(), *(most or [])][: 3 * 256], np.uint8).reshape(-1, 3)
    pixels = np.asarray(picture).astype(int)
    unique, where = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
    nearest = np.array([np.argmin(((palette.astype(int) - colour) ** 2).sum(1)) for colour in unique])
    result = Image.fromarray(nearest[where.reshape(-1)].reshape(pixels.shape[:2]).astype(np.uint8), "P")
    result.putpalette(palette.reshape(-1).tolist())
    return result


def draw(family: ModuleType, least: Callable[[], float]) -> Path:
    name = family.__name__.rsplit(".", 1)[1]
    kinds = {
        kind: [info for info in family.SAMPLERS if info.stochastic == (kind == "noise")] for kind in ("none", "noise")
    }
    kinds = {kind: infos for kind, infos in kinds.items() if infos}
    plt.rcParams.update({"font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False})
    figure, rows = plt.subplots(len(kinds), 2, figsize=(9, 3.7 * len(kinds)), squeeze=False, width_ratios=(1.08, 1))
    for (left, right), (kind, infos) in zip(rows, kinds.items(), strict=True):
        traced = [info.name for info in infos if info.name in TRACES.get(name, ())] or [infos[0].name]
        no_order = infos[0].order is None
        trace(left, traced[0], CALLS.get(name, 8), exact=no_order)
        if no_order:
            models(right, infos, least())
        elif kind == "noise":
            stochastic(right, infos, least())
        else:
            deterministic(right, infos)
    figure.tight_layout(w_pad=2.0, h_pad=1.6)
    buffer, path = io.BytesIO(), IMAGES / f"{name}.png"
    figure.savefig(buffer, dpi=100)
    plt.close(figure)
    IMAGES.mkdir(parents=True, exist_ok=True)
    small(Image.open(buffer).convert("RGB")).save(path, optimize=True)
    return path


def main() -> None:
    families = {family.__name__.rsplit(".", 1)[1]: family for family in FAMILIES}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="*", help="all, if none is named")
    known: list[float] = []

    def least() -> float:
        known[:] = known or [floor()]
        return known[0]

    for name in parser.parse_args().family or [name for name in families if name != "cfg_plus_plus"]:
        path = draw(families[name], least)
        print(f"wrote {path} ({path.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()
