"""What does guidance do to where samplers end, and what does CFG++? docs/images/samplers/cfg_plus_plus.png.

    python benchmarks/guidance_plot.py

The data is the mixture of `sampler_plots.py`, of three Gaussians on a line; the prompt asks for two of them.
Predictions with and without the prompt are known, and so is what the prompt's pictures are distributed like.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from sampler_plots import COLOURS, DATA, IMAGES, TRACED, small

import sd_ext

import matplotlib.pyplot as plt  # isort: skip  # with the backend that sampler_plots chose
from matplotlib.axes import Axes  # isort: skip
from tests.schedulers.mixture import Mixture, run_table  # isort: skip

ASKED = Mixture(np.array([0.6, 0.4]), DATA.means[1:], DATA.stds[1:])
"""What the prompt asks for."""
CALLS, DRAWS = 12, 4000
SHOWN = (("euler", 1.001), ("euler", 7.0), ("euler cfg++", 1.3))


class Guided:
    """The mixture of both predictions."""

    def __init__(self, scale: float):
        self.scale = scale

    def x0(self, x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        u = DATA.x0(x, alpha, sigma)
        return u + self.scale * (ASKED.x0(x, alpha, sigma) - u)

    def eps(self, x: np.ndarray, alpha: float, sigma: float) -> np.ndarray:
        return (x - alpha * self.x0(x, alpha, sigma)) / sigma


def path(name: str, scale: float, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(sigma / alpha of every level, x / alpha there)."""
    scheduler = sd_ext.make_scheduler(name, grid="karras", final_sigmas_type="sigma_min")
    scheduler.set_timesteps(CALLS)
    levels, whole = scheduler.levels, scheduler.table()
    points = [x * levels.sigma[0]]
    for calls in range(1, CALLS + 1):
        part = type(whole)(levels[: calls + 1], whole.rows[:calls], whole.basis, "nothing", whole.fields)
        points.append(run_table(part, Guided(scale), points[0], free=DATA))  # type: ignore[arg-type]
    return levels.ratio, np.array([p[:, 0] / a for p, a in zip(points, levels.alpha, strict=True)])


def density(mixture: Mixture, x: np.ndarray) -> np.ndarray:
    off = (x[:, None] - mixture.means[:, 0]) / mixture.stds
    return (np.exp(-0.5 * off**2) / mixture.stds / np.sqrt(2 * np.pi)) @ mixture.weights


def panel(trajectories: Axes, ends: Axes, name: str, scale: float, colour: str) -> None:
    ratio, drawn = path(name, scale, np.random.default_rng(0).standard_normal((DRAWS, 1)))
    some = np.argsort(drawn[0])[[int(share * DRAWS) for share in TRACED]]
    trajectories.plot(ratio, drawn[:, some], "o-", color=colour, linewidth=1.0, markersize=3, markeredgewidth=0)
    title = f"{name}, guidance {scale:g}" if scale > 1.01 else f"{name}, the prompt alone"
    trajectories.set(xscale="log", xlim=(20, ratio[-1] / 1.15), ylim=(-4.2, 4.2), title=title)
    trajectories.set_xlabel("sigma / alpha")
    x = np.linspace(-4.2, 4.2, 400)
    ends.fill_betweenx(x, density(ASKED, x), color="0.85", label="what the prompt asks for")
    ends.plot(density(DATA, x), x, color="0.55", linewidth=0.9, linestyle=(0, (3, 2)), label="without the prompt")
    ends.hist(
        drawn[-1], bins=70, range=(-4.2, 4.2), density=True, orientation="horizontal", histtype="step", color=colour
    )
    ends.set(ylim=(-4.2, 4.2), yticks=[], xticks=[])


def main() -> None:
    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    figure, axes = plt.subplots(1, 2 * len(SHOWN), figsize=(10.5, 3.5), width_ratios=(2.2, 1) * len(SHOWN))
    for place, ((name, scale), colour) in enumerate(zip(SHOWN, COLOURS, strict=False)):
        panel(axes[2 * place], axes[2 * place + 1], name, scale, colour)
    axes[0].set_ylabel("x / alpha")
    axes[1].legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), frameon=False, fontsize=7)
    figure.tight_layout(w_pad=0.4)
    buffer, out = io.BytesIO(), IMAGES / "cfg_plus_plus.png"
    figure.savefig(buffer, dpi=100)
    small(Image.open(buffer).convert("RGB")).save(out, optimize=True)
    print(f"wrote {out} ({out.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()
