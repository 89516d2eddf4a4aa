"""What one scheduler step costs, beside Diffusers' scheduler of the same name, in one run.

    python benchmarks/scheduler_cost.py [--repeats 9]

For each sampler and latent size, whole 20-call runs of both schedulers alternate; the network is a constant tensor, so
only the schedulers are timed. The floor is what no implementation can avoid: reading x, the network's output and the
predictions the row uses, writing x' and the prediction kept, at the speed of copies among as many latents as the step
touches; for stochastic samplers also the draw of the noise. Both are timed in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import diffusers
import torch
from _report import write

import sd_ext

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CALLS = 20
SIZES = [(1, 4, 64, 64), (8, 4, 128, 128)]
MULTISTEP = "DPMSolverMultistepScheduler"
CASES = {
    "DDPM": ("DDPMScheduler", {"clip_sample": False}),
    "DDIM": ("DDIMScheduler", {"clip_sample": False}),
    "PLMS": ("PNDMScheduler", {"skip_prk_steps": True}),
    "Euler": ("EulerDiscreteScheduler", {}),
    "Euler a": ("EulerAncestralDiscreteScheduler", {}),
    "Heun": ("HeunDiscreteScheduler", {}),
    "DPM-Solver 2M": (MULTISTEP, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    "DPM++ 2M": (MULTISTEP, {}),
    "DPM++ 3M": (MULTISTEP, {"solver_order": 3}),
    "DPM++ 2S": ("DPMSolverSinglestepScheduler", {}),
    "DPM++ 2M SDE": (MULTISTEP, {"algorithm_type": "sde-dpmsolver++"}),
}
MULTISTEP_NAMES = ("PLMS", "DPM-Solver 2M", "DPM++ 2M", "DPM++ 3M", "DPM++ 2M SDE")


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def steps(scheduler, x: torch.Tensor, m: torch.Tensor) -> tuple[float, int]:
    """Time of the step() calls of one run, and how many there were."""
    scheduler.set_timesteps(CALLS)
    generator = torch.Generator().manual_seed(0)
    noisy = {"generator": generator} if "generator" in scheduler.step.__code__.co_varnames else {}
    state = x * float(scheduler.init_noise_sigma)
    total = 0.0
    for t in scheduler.timesteps:
        scheduler.scale_model_input(state, t)
        start = time.perf_counter()
        state = scheduler.step(m, t, state, return_dict=False, **noisy)[0]
        total += time.perf_counter() - start
    return total, len(scheduler.timesteps)


def copies(tensors: list[torch.Tensor]) -> None:
    for _ in range(10):
        for source, target in zip(tensors, tensors[1:] + tensors[:1], strict=True):
            target.copy_(source)


def traffic(scheduler) -> tuple[int, bool]:
    """Tensors that a steady call must read and write, and whether it draws noise."""
    scheduler.set_timesteps(CALLS)
    scheduler.step(torch.zeros(1, 1), scheduler.timesteps[0], torch.zeros(1, 1))
    run = scheduler._plan.run
    call, row = run.calls[CALLS // 2], run.table.rows[CALLS // 2]
    read = 2 + int((row[:, 3:-1] != 0).any(axis=0).sum()) + int(row[:, 1].any()) + int(call.noisy)
    return read + 1 + int(isinstance(call.keep, float)), call.noisy


def measure(name: str, config: dict, size: tuple[int, ...], repeats: int) -> dict[str, float]:
    x, m = torch.randn(size), torch.randn(size)
    ours, theirs = getattr(sd_ext, name)(**SD, **config), getattr(diffusers, name)(**SD, **config)
    if hasattr(theirs.config, "lower_order_final"):
        theirs.register_to_config(lower_order_final=True)
    passes, noisy = traffic(ours)
    touched = [torch.randn(size) for _ in range(passes)]
    times: dict[str, list[float]] = {"ours": [], "theirs": [], "copy": [], "draw": []}
    for _ in range(repeats):
        for key, scheduler in (("theirs", theirs), ("ours", ours)):
            total, calls = steps(scheduler, x, m)
            times[key].append(total / calls * 1e6)
        times["copy"].append(seconds(lambda: copies(touched)) / (10 * passes) * 1e6)
        times["draw"].append(seconds(lambda: torch.randn(size)) * 1e6)
    median = {key: statistics.median(values) for key, values in times.items()}
    floor = median["copy"] / 2 * passes + (median["draw"] if noisy else 0.0)
    return {**median, "share": median["ours"] / median["theirs"], "floor": floor, "over_floor": median["ours"] / floor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="runs of each scheduler; medians are reported")
    repeats = parser.parse_args().repeats
    warnings.simplefilter("ignore")
    diffusers.logging.set_verbosity_error()
    result: dict[str, dict] = {}
    lines = []
    with torch.no_grad():
        for size in SIZES:
            lines += [
                f"Latents {size}, microseconds a step, median of {repeats} runs of {CALLS} calls:\n",
                "| sampler | Diffusers | sd_ext | share | floor | over floor |",
                "|---|---|---|---|---|---|",
            ]
            for label, (name, config) in CASES.items():
                row = measure(name, config, size, repeats)
                result.setdefault(str(size), {})[label] = row
                lines.append(
                    f"| {label} | {row['theirs']:.0f} | {row['ours']:.0f} | {row['share']:.2f} "
                    f"| {row['floor']:.0f} | {row['over_floor']:.1f} |"
                )
            lines.append("")
    small, large = (result[str(size)] for size in SIZES)
    worst = max(MULTISTEP_NAMES, key=lambda n: small[n]["share"])
    slowest = max(large, key=lambda n: large[n]["over_floor"])
    lines += [
        f"Small latents, multistep samplers: at most {small[worst]['share']:.2f} of Diffusers' time ({worst}).",
        f"Large latents: at most {large[slowest]['over_floor']:.1f} times the unavoidable traffic ({slowest}).",
    ]
    write("scheduler_cost", {"calls": CALLS, "repeats": repeats, "microseconds": result}, "\n".join(lines))


if __name__ == "__main__":
    main()
