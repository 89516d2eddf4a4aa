"""Error against network calls on a Gaussian mixture with exact score, beside every comparable Diffusers setting.

    python benchmarks/error_vs_calls.py [--starts 256]

Data: 24 Gaussians in 16 dimensions, Stable Diffusion's noise schedule. The score is exact, so the only error is the
sampler's: root mean square distance to the exact solution of the probability-flow ODE from the same starts (DOP853 to
1e-11), at the clean end. All settings of a count make the same number of network calls; Diffusers' PNDM, which makes
one more than asked, and Heun, which makes 2n - 1, are asked for fewer steps.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import matplotlib
import numpy as np
import torch
from _report import RESULTS, write
from rich.progress import track

import sd_ext

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.schedulers.mixture import Mixture

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
COUNTS = (5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50)


@dataclass(frozen=True)
class Setting:
    """A sampler with its grid, in one of the two packages."""

    package: str
    label: str
    cls: str
    options: dict[str, Any]

    def make(self, calls: int):
        scheduler = getattr(diffusers if self.package == "diffusers" else sd_ext, self.cls)(**{**SD, **self.options})
        asked = calls
        if self.package == "diffusers" and self.cls == "PNDMScheduler":
            asked = calls - 1
        if self.package == "diffusers" and self.cls == "HeunDiscreteScheduler":
            asked = (calls + 1) // 2
        scheduler.set_timesteps(asked)
        return scheduler


def settings() -> list[Setting]:
    flags = {
        "trailing": {"timestep_spacing": "trailing"},
        "linspace": {"timestep_spacing": "linspace"},
        "karras": {"use_karras_sigmas": True},
        "exponential": {"use_exponential_sigmas": True},
        "beta": {"use_beta_sigmas": True},
    }
    theirs = [
        Setting("diffusers", f"DDIM {g}", "DDIMScheduler", {"clip_sample": False, **flags[g]}) for g in ("trailing",)
    ]
    theirs += [Setting("diffusers", "PNDM leading", "PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1})]
    for label, cls, options in (
        ("Euler", "EulerDiscreteScheduler", {}),
        ("Heun", "HeunDiscreteScheduler", {}),
        ("DPM++ 2M", "DPMSolverMultistepScheduler", {}),
        ("DPM++ 3M", "DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("DPM++ 2S", "DPMSolverSinglestepScheduler", {"lower_order_final": True}),
        ("DEIS-3", "DEISMultistepScheduler", {"solver_order": 3}),
        ("UniPC-2", "UniPCMultistepScheduler", {"solver_order": 2}),
        ("UniPC-3", "UniPCMultistepScheduler", {"solver_order": 3}),
    ):
        for g in ("trailing", "karras", "exponential", "beta"):
            if cls == "DPMSolverSinglestepScheduler" and g == "trailing":
                theirs.append(Setting("diffusers", f"{label} linspace", cls, options))
            else:
                theirs.append(Setting("diffusers", f"{label} {g}", cls, {**options, **flags[g]}))
    ours = [
        Setting(
            "sd_ext", f"{info.name} {grid}", info.cls.__name__, {**info.options, "grid": grid, "clip_sample": False}
        )
        for info in sd_ext.list_samplers()
        if not info.stochastic and info.name not in ("dpm-solver 1", "dpm++ 1", "euler")
        for grid in ("trailing", "karras", "exponential", "beta", "ays", "lambda_uniform")
    ]
    return theirs + ours


def solve(setting: Setting, calls: int, data: Mixture, start: np.ndarray) -> np.ndarray | None:
    """The end points, or None where the setting cannot make exactly this many calls, or fails."""
    scheduler = setting.make(calls)
    schedule, evaluations = sd_ext.make_scheduler("ddim").schedule, 0
    x = torch.from_numpy(start) * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        model_x = scheduler.scale_model_input(x, t).double()
        level = schedule.at([float(t)])
        eps = data.eps(model_x.numpy(), float(level.alpha[0]), float(level.sigma[0]))
        x = scheduler.step(torch.from_numpy(eps), t, x).prev_sample.double()
        evaluations += 1
    return x.numpy() if evaluations == calls else None


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a - b) ** 2)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=int, default=256, help="starting points")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    diffusers.logging.set_verbosity_error()
    data = Mixture.random(24, 16, seed=0)
    schedule = sd_ext.make_scheduler("ddim").schedule
    # Starts are drawn from the exact marginal at t = 999, where every setting but "leading" begins; Euler's family
    # scales its starts by sigma_max / sqrt(sigma_max^2 + 1), so each setting gets its starts in its own scale.
    top = schedule.at([999.0])
    start = data.sample(arguments.starts, float(top.alpha[0]), float(top.sigma[0]), seed=1)
    exact = data.solve(start, top.then(schedule.at_lambda([12.0])))
    errors: dict[str, dict[str, list[float | None]]] = {"diffusers": {}, "sd_ext": {}}
    for setting in track(settings(), "settings"):
        row: list[float | None] = []
        for calls in COUNTS:
            own = start / float(setting.make(calls).init_noise_sigma) * scale(setting, calls, top)
            try:
                end = solve(setting, calls, data, own)
            except (IndexError, AssertionError):  # Diffusers looks repeated timesteps up wrongly and loses its place
                end = None
            row.append(None if end is None or not np.isfinite(end).all() else rmse(end, exact))
        errors[setting.package][setting.label] = row
    report(errors, arguments.starts)


def scale(setting: Setting, calls: int, top) -> float:
    """What turns the model's scale into the one the scheduler's latents have: 1, or 1 / alpha for sigma-space ones."""
    scheduler = setting.make(calls)
    one = torch.ones(1, 1)
    return (
        float(1 / scheduler.scale_model_input(one, scheduler.timesteps[0])) if setting.package == "diffusers" else 1.0
    )


def report(errors: dict, starts: int) -> None:
    def best(package: str, i: int) -> tuple[float, str]:
        return min((row[i], label) for label, row in errors[package].items() if row[i] is not None)

    lines = [
        f"RMSE to the exact solution, {starts} starts, 24 Gaussians in 16 dimensions.\n",
        "| calls | best Diffusers setting | | best sd_ext setting | | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for i, calls in enumerate(COUNTS):
        (theirs, their_label), (ours, our_label) = best("diffusers", i), best("sd_ext", i)
        lines.append(f"| {calls} | {theirs:.4f} | {their_label} | {ours:.4f} | {our_label} | {ours / theirs:.2f} |")
    lines += ["", "| setting | " + " | ".join(map(str, COUNTS)) + " |", "|---" * (len(COUNTS) + 1) + "|"]
    for package, rows in errors.items():
        for label, row in rows.items():
            cells = " | ".join("-" if v is None else f"{v:.4f}" for v in row)
            lines.append(f"| {package}: {label} | {cells} |")
    plot(errors, best)
    write("error_vs_calls", {"counts": COUNTS, "starts": starts, "rmse": errors}, "\n".join(lines))


def plot(errors: dict, best) -> None:
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for package, colour in (("diffusers", "tab:gray"), ("sd_ext", "tab:blue")):
        for row in errors[package].values():
            points = [(c, v) for c, v in zip(COUNTS, row, strict=True) if v is not None]
            axes.plot(*zip(*points, strict=True), color=colour, alpha=0.15, linewidth=0.8)
        line = [best(package, i)[0] for i in range(len(COUNTS))]
        axes.plot(COUNTS, line, color=colour, marker="o", linewidth=2, label=f"best of {package} at each count")
    axes.set(xscale="log", yscale="log", xlabel="network calls", ylabel="RMSE to the exact solution")
    axes.set_xticks(COUNTS, [str(c) for c in COUNTS])
    axes.minorticks_off()
    axes.set_ylim(1e-4, 1)
    axes.set_title("Gaussian mixture, exact score: error against network calls")
    axes.legend()
    figure.savefig(RESULTS / "error_vs_calls.png", dpi=120)


if __name__ == "__main__":
    main()
