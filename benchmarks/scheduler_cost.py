"""What one scheduler step costs, beside Diffusers' scheduler of the same name, in one run.

    python benchmarks/scheduler_cost.py [--repeats 9]

For each sampler of the package and each latent size, whole 20-call runs of both schedulers alternate; the network is a
constant tensor, so only the schedulers are timed. The floor is what no implementation can avoid: reading x, the
network's output and the predictions the row uses, writing x' and the prediction kept, at the speed of copies among as
many latents as the step touches; for stochastic samplers also the draw of the noise. "Plain" is the same sums in torch
alone: each a product and in-place scaled additions, and the draw. What a step takes beyond them is Python around them,
for which the bars are 1.7 times at the small size and 1.3 at the large one. All are timed in the same run.

The C library is told to keep the memory that is freed. Else it returns large pieces to the system and fetches them
again as chance has it, which at the large size takes longer than the sums, for either side.

Samplers of two fields find the second half on the board, where a network would have left it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import inspect
import math
import statistics
import time
import warnings
from collections.abc import Callable

import diffusers
import torch
from _report import write
from rich.progress import track

import sd_ext
from sd_ext.board import BOARD

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
CALLS = 20
SIZES = [(1, 4, 64, 64), (8, 4, 128, 128)]
BARS = (1.7, 1.3)
"""How many times as long as its sums in plain torch a step may take, at each size."""
OPTIONS = {"clip_sample": False, "lower_order_final": True}


def same_named(info: sd_ext.SamplerInfo):
    """Diffusers' scheduler of the same class name and options, or None where it has no such class or option."""
    cls = getattr(diffusers, info.cls.__name__, None)
    known = inspect.signature(cls.__init__).parameters if cls else {}
    own = {name for name, value in info.options.items() if value != info.cls._options[name]}
    if cls is None or not own <= set(known):
        return None
    options = {**SD, **OPTIONS, **info.options}
    if options.get("algorithm_type") == "dpmsolver":
        options["final_sigmas_type"] = "sigma_min"
    return cls(**{name: value for name, value in options.items() if name in known})


def keep_memory() -> None:
    """Tell glibc to return no memory to the system: mallopt's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, a gigabyte."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        for parameter in (-1, -3):
            library.mallopt(parameter, 2**30)


def seconds(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def steps(scheduler, x: torch.Tensor, m: torch.Tensor) -> tuple[float, int]:
    """Time of the step() calls of one run, and how many there were."""
    scheduler.set_timesteps(CALLS)
    generator = torch.Generator().manual_seed(0)
    noisy = {"generator": generator} if "generator" in scheduler.step.__code__.co_varnames else {}
    state = x * float(getattr(scheduler, "init_noise_sigma", 1.0))
    total = 0.0
    for t in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):  # Diffusers' flow matching has none
            scheduler.scale_model_input(state, t)
        leave_halves(scheduler, t, m)
        start = time.perf_counter()
        state = scheduler.step(m, t, state, return_dict=False, **noisy)[0]
        total += time.perf_counter() - start
    return total, len(scheduler.timesteps)


def leave_halves(scheduler, timestep: torch.Tensor, m: torch.Tensor) -> None:
    """What a network with guidance leaves for samplers that weigh one half of it."""
    if getattr(scheduler, "weighs_unconditional", False):
        BOARD.write_halves(timestep, torch.zeros_like(m), m)


def copies(tensors: list[torch.Tensor]) -> None:
    for _ in range(10):
        for source, target in zip(tensors, tensors[1:] + tensors[:1], strict=True):
            target.copy_(source)


def traffic(scheduler) -> tuple[float, float]:
    """Tensors that a call must read and write, and which share of the calls draws noise, on average over a run."""
    scheduler.set_timesteps(CALLS)
    zero = torch.zeros(1, 1)
    leave_halves(scheduler, scheduler.timesteps[0], zero)
    scheduler.step(zero, scheduler.timesteps[0], zero)
    run = scheduler._plan.run
    touched = 0
    for call, row in zip(run.calls, run.table.rows, strict=True):
        read = 2 + int((row[:, 3:-1] != 0).any(axis=0).sum()) + int(row[:, 1].any()) + int(call.noisy)
        touched += read + 1 + int(isinstance(call.keep, float))
    return touched / len(run.calls), sum(call.noisy for call in run.calls) / len(run.calls)


def sums(scheduler) -> list[tuple[bool, list[int]]]:
    """Of each call, whether it draws noise and how many terms its weighted sums have: x', the stash, and what is kept
    of the prediction.
    """
    made = []
    for call in scheduler._plan.run.calls:
        kept = sum(isinstance(each, float) for each in (call.keep, call.keep_second))
        made.append((call.noisy, [len(weights) for weights in (call.x, call.stash) if weights] + [2] * kept))
    return made


def plain(calls: list[tuple[bool, list[int]]], tensors: list[torch.Tensor]) -> None:
    """The weighted sums of a run and its draws of noise, by torch alone."""
    for noisy, terms in calls:
        if noisy:
            torch.randn(tensors[0].shape)
        for count in terms:
            out = tensors[0] * 0.9
            for i in range(1, count):
                out.add_(tensors[i % len(tensors)], alpha=0.1)


def measure(info: sd_ext.SamplerInfo, size: tuple[int, ...], repeats: int) -> dict[str, float]:
    x, m = torch.randn(size), torch.randn(size)
    ours, theirs = sd_ext.make_scheduler(info.name, SD, clip_sample=False), same_named(info)
    passes, noisy = traffic(ours)
    touched = [torch.randn(size) for _ in range(math.ceil(passes))]
    calls_of_sums = sums(ours)
    times: dict[str, list[float]] = {"ours": [], "theirs": [], "copy": [], "draw": [], "plain": []}
    for _ in range(repeats):
        for key, scheduler in (("theirs", theirs), ("ours", ours)):
            if scheduler is None:
                continue
            total, calls = steps(scheduler, x, m)
            times[key].append(total / calls * 1e6)
        times["copy"].append(seconds(lambda: copies(touched)) / (10 * len(touched)) * 1e6)
        times["draw"].append(seconds(lambda: torch.randn(size)) * 1e6)
        times["plain"].append(seconds(lambda: plain(calls_of_sums, touched)) / len(calls_of_sums) * 1e6)
    median = {key: statistics.median(values) for key, values in times.items() if values}
    floor = median["copy"] / 2 * passes + median["draw"] * noisy
    share = {"share": median["ours"] / median["theirs"]} if theirs else {}
    return {
        **median,
        **share,
        "floor": floor,
        "over_floor": median["ours"] / floor,
        "over_plain": median["ours"] / median["plain"],
    }


def table(size: tuple[int, ...], rows: dict[str, dict[str, float]], repeats: int) -> list[str]:
    lines = [
        f"Latents {size}, microseconds a step, median of {repeats} runs of {CALLS} calls:\n",
        "| sampler | Diffusers | sd_ext | share | floor | over floor | plain | over plain |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        theirs = f"{row['theirs']:.0f} | {row['ours']:.0f} | {row['share']:.2f}" if "share" in row else None
        ours = theirs or f"- | {row['ours']:.0f} | -"
        beside = f"{row['floor']:.0f} | {row['over_floor']:.1f} | {row['plain']:.0f} | {row['over_plain']:.2f}"
        lines.append(f"| {name} | {ours} | {beside} |")
    return [*lines, ""]


def summary(small: dict, large: dict) -> list[str]:
    shares = sorted((row["share"], name) for name, row in small.items() if "share" in row)
    tenth = [name for share, name in shares if share <= 0.105]
    over = sorted((row["over_floor"], name) for name, row in large.items())
    within = [name for ratio, name in over if ratio <= 2.05]
    beside = []
    for rows, bar, size in zip((small, large), BARS, SIZES, strict=True):
        ratios = sorted(row["over_plain"] for row in rows.values())
        met = sum(ratio <= bar for ratio in ratios)
        beside.append(
            f"Beside the same sums in plain torch at {size}: {ratios[0]:.2f} to {ratios[-1]:.2f} times as long, median "
            f"{statistics.median(ratios):.2f}; within the bar of {bar} for {met} of {len(ratios)}."
        )
    return [
        f"Small latents: {shares[0][0]:.2f} to {shares[-1][0]:.2f} of the time of Diffusers' class of the same name "
        f"({shares[0][1]}, {shares[-1][1]}), median {statistics.median(s for s, _ in shares):.2f}; a tenth or less for "
        f"{len(tenth)} of {len(shares)}.",
        f"Large latents: {over[0][0]:.1f} to {over[-1][0]:.1f} times the unavoidable traffic ({over[0][1]}, "
        f"{over[-1][1]}); within twice for {len(within)} of {len(over)}.",
        *beside,
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="runs of each scheduler; medians are reported")
    repeats = parser.parse_args().repeats
    warnings.simplefilter("ignore")
    diffusers.logging.set_verbosity_error()
    keep_memory()
    with torch.no_grad():
        result = {
            str(size): {i.name: measure(i, size, repeats) for i in track(sd_ext.list_samplers(), str(size))}
            for size in SIZES
        }
    small, large = (result[str(size)] for size in SIZES)
    lines = [*table(SIZES[0], small, repeats), *table(SIZES[1], large, repeats), *summary(small, large)]
    write("scheduler_cost", {"calls": CALLS, "repeats": repeats, "microseconds": result}, "\n".join(lines))


if __name__ == "__main__":
    main()
