"""Calibrated samplers beside every comparable Diffusers setting: mixtures, the embedded model, reuse.

    python benchmarks/calibration.py [mixtures] [embedded] [reuse]
        [--seeds 5] [--pairs 16] [--scorer DIR] [--quick]

Errors are root mean square differences of an end from the converged one, averaged over starts that were neither fitted
to nor chosen on; a table gives the mean over seeds and, in brackets, the least and the most. A seed is other starts,
and for the embedded model other captions. Converged is an exact solution (mixtures) or the model's own of 150 calls.
All settings of a count make the same number of network calls. Results are written as they come.

    mixtures   three Gaussian mixtures without guidance, one near a sheet of two dimensions
    embedded   the embedded model at guidance 1.5, 4 and 7.5: latents, pixels, spread, what the calls are worth; with
               --scorer also how often the judge of `scorer.py` knows the thing that was asked for
    reuse      at 5: calls that reuse deep features, chosen with the fit or spread evenly, beside fits of fewer calls
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from _report import write
from error_vs_calls import Setting, theirs
from problems import SD, Problem, solve

import sd_ext
from sd_ext.calibration.fit import Fitting, Shape
from sd_ext.calibration.measure import rmse, spread
from sd_ext.calibration.pipeline import PipelineProblem
from sd_ext.calibration.problem import Sets
from sd_ext.calibration.refine import Effort
from sd_ext.calibration.run import dealt
from sd_ext.calibration.student import Course, Student
from sd_ext.calibration.tables import end, known_table
from sd_ext.calibration.teacher import Teacher, table_of, teach
from sd_ext.calibration.whole_calls import count, evenly
from sd_ext.models.words import read_words
from tests.calibration.problems import MixtureProblem
from tests.schedulers.mixture import Mixture

REFERENCE, REFERENCE_CALLS = "dpm++ 3m exact karras", 150
STRENGTHS, COUNTS, MORE = (1.5, 4.0, 7.5), (4, 5, 6, 8, 10), (12,)
MIXTURE_COUNTS = (5, 6, 8, 10)
REUSED_AT = 5.0

Measured = dict[str, list[float]]
"""Name -> a number for each seed."""

Found = tuple[dict[str, Any], list[str]]
"""What a part has found so far, and the lines of its report."""


# ---- problems --------------------------------------------------------------------------------------------------------


def near_a_sheet(components: int = 60, dimensions: int = 12, seed: int = 21) -> Mixture:
    """Narrow Gaussians along a curved sheet of two dimensions."""
    rng = np.random.default_rng(seed)
    u, v = rng.uniform(-2, 2, (2, components))
    sheet = np.stack([u, v, np.sin(2 * u), 0.5 * u * v, np.cos(v)], 1)
    turned = np.linalg.qr(rng.standard_normal((dimensions, dimensions)))[0][:, :5]
    return Mixture(np.full(components, 1 / components), sheet @ turned.T, np.full(components, 0.08))


MIXTURES: dict[str, Callable[[], Mixture]] = {
    "24 Gaussians in 16 dimensions": lambda: Mixture.random(24, 16, seed=101),
    "12 Gaussians in 10 dimensions": lambda: Mixture.random(12, 10, seed=102, spread=1.5),
    "near a sheet, 12 dimensions": near_a_sheet,
}


def as_initial_value(problem: Any, pairs: range, guidance: float, goal: torch.Tensor) -> Problem:
    """A calibration's problem for Diffusers' schedulers, which want epsilon at a timestep."""

    def eps(x: torch.Tensor, t: float, _: Any) -> torch.Tensor:
        level = problem.schedule.at([t])
        alpha, sigma = float(level.alpha[0]), float(level.sigma[0])
        made = [
            problem.predict(pairs[i : i + problem.batch], x[i : i + problem.batch], t, alpha, sigma, guidance)[0]
            for i in range(0, len(pairs), problem.batch)
        ]
        return (x - alpha * torch.cat(made)) / sigma

    return Problem("", "", eps, problem.start(pairs), goal)


def best_of_theirs(problem: Problem, calls: int, kept: Sequence[str] | None = None) -> dict[str, float]:
    """Diffusers setting -> its error; those that cannot make so many calls are left out.

    Args:
        kept: names of those to run; all by default.
    """
    found = {}
    for setting in theirs():
        if kept is not None and setting.label not in kept:
            continue
        with suppress(IndexError, AssertionError):
            scheduler = Setting(setting.package, setting.label, setting.name, setting.options).make(calls)
            if scheduler is not None and len(scheduler.timesteps) == calls:
                value = rmse(solve(problem, scheduler), problem.end)
                if np.isfinite(value):
                    found[setting.label] = value
    return found


def best_kept(case: Case, calls: int, kept: dict[int, list[str]] | None) -> dict[str, float]:
    """As `best_of_theirs`: the first time of all settings, then of the eight that were best."""
    problem = as_initial_value(case.problem, case.sets.for_judgement, case.guidance, case.goal)
    found = best_of_theirs(problem, calls, (kept or {}).get(calls))
    if kept is not None:
        kept.setdefault(calls, sorted(found, key=lambda label: found[label])[:8])
    return found


# ---- measuring -------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """A problem with its teacher at one strength, and the converged ends of the pairs that judge."""

    problem: Any
    sets: Sets
    guidance: float
    teacher: Teacher
    goal: torch.Tensor
    prompts: Sequence[str] = ()

    @property
    def fields(self) -> int:
        return 2 if self.guidance > 1 else 1

    def fitting(self, effort: Effort, fields: int | None = None) -> Fitting:
        return Fitting(self.problem, self.sets, self.guidance, fields or self.fields, self.teacher, SD, effort)

    def judged(self, student: Student) -> torch.Tensor:
        return Course(self.problem, self.sets.for_judgement, self.guidance).run(student).end


def added(rows: dict[str, Measured], row: str, name: str, value: float) -> None:
    rows.setdefault(row, {}).setdefault(name, []).append(value)


def shown(values: Sequence[float]) -> str:
    return f"{np.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


def table(title: str, rows: dict[str, Measured]) -> Iterator[str]:
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    yield from (f"## {title}\n", "| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|")
    for row, values in rows.items():
        yield f"| {row} | " + " | ".join(shown(values[name]) if name in values else "-" for name in names) + " |"
    yield ""


def compared(
    case: Case, calls: int, rows: dict[str, Measured], effort: Effort, kept: dict[int, list[str]] | None = None
) -> Student:
    """Fit for some calls, and measure it beside all others.

    Args:
        kept: number of calls -> the Diffusers settings that were best on the first seed; filled by that one.
    """
    row, began = f"{calls}", time.perf_counter()
    grid, student = case.fitting(effort).student(calls, None)
    seconds, made = time.perf_counter() - began, case.judged(student)
    others = best_kept(case, calls, kept)
    ours, theirs_best = rmse(made, case.goal), min(others.values())
    added(rows, row, "fitted", ours)
    added(rows, row, "best Diffusers setting", theirs_best)
    added(rows, row, "ratio", ours / theirs_best)
    added(rows, row, "spread", spread(made, case.goal))
    course = Course(case.problem, case.sets.for_judgement, case.guidance)
    added(rows, row, "auto", rmse(end(course, known_table("auto", calls, SD, case.guidance)), case.goal))
    added(rows, row, "seconds", seconds)
    print(
        f"  {calls} calls: {ours:.4f} ({grid}), Diffusers {theirs_best:.4f} ({min(others, key=others.get)})", flush=True
    )
    return student


# ---- the parts -------------------------------------------------------------------------------------------------------


def mixtures(arguments: argparse.Namespace) -> Iterator[Found]:
    found, lines = {}, []
    sets = Sets(32, 16, 32) if arguments.quick else Sets(128, 64, 256)
    for title, make in MIXTURES.items():
        data, rows = make(), {}
        for seed in range(arguments.seeds):
            print(f"{title}, seed {seed}", flush=True)
            problem = MixtureProblem(data, sets.pairs, seed=1000 + seed)
            top = problem.schedule.at([999.0])
            judged = sets.for_judgement
            exact = data.solve(problem.start(judged).numpy(), top.then(problem.schedule.at_lambda([12.0])))
            teacher = teach(problem, sets, 1.0, table_of(SD))
            case = Case(problem, sets, 1.0, teacher, torch.from_numpy(exact))
            for calls in MIXTURE_COUNTS[:1] if arguments.quick else MIXTURE_COUNTS:
                compared(case, calls, rows, Effort(1, 2) if arguments.quick else Effort(4, 6))
        found[title] = rows
        lines += table(title, rows)
        yield found, lines


@cache
def pipeline() -> Any:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(sd_ext.pretrained_path())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def guided(guidance: float, seed: int, sets: Sets, arguments: argparse.Namespace) -> Case:
    """The embedded model on captions and noise of a seed."""
    from sd_ext.calibration.prompts import lines_of, of_pipeline

    pipe = pipeline()
    given = lines_of(Path(arguments.prompts)) if arguments.prompts else of_pipeline(pipe)
    prompts = dealt(given, sets.pairs, seed)
    problem = PipelineProblem(pipe, prompts, seeds_of(seed, sets))
    teacher = teach(problem, sets, guidance, table_of(problem.config, calls=12 if arguments.quick else 72))
    reference = known_table(REFERENCE, 20 if arguments.quick else REFERENCE_CALLS, problem.config)
    goal = end(Course(problem, sets.for_judgement, guidance), reference)
    return Case(problem, sets, guidance, teacher, goal, prompts)


def seeds_of(seed: int, sets: Sets) -> list[int]:
    """Of the noise of each pair."""
    return [10_000 * seed + i for i in range(sets.pairs)]


def pixels(latents: torch.Tensor) -> torch.Tensor:
    vae = pipeline().vae
    with torch.no_grad():
        return vae.decode(latents / vae.config["scaling_factor"]).sample.clamp(-1, 1)


def known_things(case: Case, student: Student, calls: int, scorer: str | None) -> dict[str, float]:
    """Of pictures that ask for one thing, the share whose thing the judge names: fitted, `auto`, converged."""
    if scorer is None:
        return {}
    from bars import tensor
    from scorer import judge, load_scorer

    from sd_ext.training.data.images import to_uint8

    words, judging = read_words(Path(sd_ext.pretrained_path())), load_scorer(Path(scorer))
    assert words is not None
    pairs = case.sets.for_judgement
    prompts = [case.prompts[i] for i in pairs]
    found = [[m.thing.names[0] for p in words.pieces(prompt) for m in p.meanings if m.thing] for prompt in prompts]
    asked = [(i, names[0]) for i, names in enumerate(found) if len(set(names)) == 1]
    course = Course(case.problem, pairs, case.guidance)
    auto = end(course, known_table("auto", calls, case.problem.config, case.guidance))
    shares = {}
    for name, ends in {"fitted": case.judged(student), "auto": auto, "converged": case.goal}.items():
        seen = judge(judging, tensor(to_uint8(pixels(ends)[[i for i, _ in asked]])))["concept"].argmax(1).tolist()
        right = [judging.labels["concept"][place] == thing for place, (_, thing) in zip(seen, asked, strict=True)]
        shares[name] = float(np.mean(right))
    return shares


def embedded(arguments: argparse.Namespace) -> Iterator[Found]:
    found, lines = {}, []
    sets, effort = of_pairs(arguments), effort_of(arguments)
    for guidance in STRENGTHS[-1:] if arguments.quick else arguments.guidance:
        rows: dict[str, Measured] = {}
        kept: dict[int, list[str]] = {}
        for seed in range(arguments.seeds):
            print(f"embedded model at guidance {guidance:g}, seed {seed}", flush=True)
            case = guided(guidance, seed, sets, arguments)
            for calls in COUNTS[:1] if arguments.quick else arguments.calls:
                student = compared(case, calls, rows, effort, kept)
                added(rows, f"{calls}", "fitted, pixels", rmse(pixels(case.judged(student)), pixels(case.goal)))
                for name, share in known_things(case, student, calls, arguments.scorer).items():
                    added(rows, f"{calls}", f"known to the judge, {name}", share)
            for calls in () if arguments.quick else MORE:
                added(rows, f"{calls}", "best Diffusers setting", min(best_kept(case, calls, kept).values()))
        found[f"{guidance:g}"] = rows
        lines += table(f"The embedded model at guidance {guidance:g}", rows)
        yield found, lines


def reuse(arguments: argparse.Namespace) -> Iterator[Found]:
    """At guidance 5, fitted samplers on a U-Net that reuses deep features in some calls, by its operations."""
    rows: dict[str, Measured] = {}
    plain, sets, effort = pipeline().unet, of_pairs(arguments), effort_of(arguments)
    cached = sd_ext.VariantUNet2DConditionModel.from_unet(plain, cache_schedule="sampler")
    counts, shares = ((3,), (0.6,)) if arguments.quick else ((6, 8), (0.5, 0.65))
    shallow = share_of_operations(cached)
    for seed in range(arguments.seeds):
        print(f"reuse, seed {seed}", flush=True)
        case = guided(REUSED_AT, seed, sets, arguments)
        for calls in range(2, max(counts) + 1):
            student = case.fitting(effort).student(calls, None)[1]
            added(rows, f"{calls} calls", "operations", calls)
            added(rows, f"{calls} calls", "fitted", rmse(case.judged(student), case.goal))
        try:
            pipeline().unet = cached
            again = replace(case, problem=PipelineProblem(pipeline(), case.prompts, seeds_of(seed, sets)))
            for calls, share in ((c, s) for c in counts for s in shares):
                fitting = replace(again.fitting(effort), whole_share=share)
                here, grid, found = fitting.begun(calls, None)
                even = Shape.of(grid, found, evenly(calls, share))
                whole, name = count(calls, share), f"{count(calls, share)} whole of {calls}"
                added(rows, name, "operations", whole + (calls - whole) * shallow)
                for column, (one, student) in {
                    "whole calls chosen": (here, found),
                    "spread evenly": fitting.begun(calls, even)[::2],
                }.items():
                    student = one.refined(student, column == "whole calls chosen")
                    end_ = one.on(sets.for_judgement).run(student).end
                    added(rows, name, column, rmse(end_, case.goal))
                print(f"  {name}: {here.whole_calls}, {shown(rows[name]['whole calls chosen'][-1:])}", flush=True)
        finally:
            pipeline().unet = plain
    for row in rows.values():
        if "whole calls chosen" in row:
            row["fitted, as many operations"] = [
                float(np.interp(row["operations"][0], *fewer(rows, seed))) for seed in range(arguments.seeds)
            ]
    yield {"calls": rows, "shallow": shallow}, [*table("Reuse as part of the fit, guidance 5", rows)]


def fewer(rows: dict[str, Measured], seed: int) -> tuple[list[float], list[float]]:
    """Operations and errors of the fits whose calls are all whole."""
    plain = [row for row in rows.values() if "fitted" in row]
    return [row["operations"][0] for row in plain], [row["fitted"][seed] for row in plain]


def share_of_operations(unet: Any) -> float:
    """The floating-point operations of a call that reuses deep features, of those of a whole one."""
    from torch.utils.flop_counter import FlopCounterMode

    counted, size = [], unet.config["sample_size"]
    x, words = (
        torch.zeros(1, unet.config["in_channels"], size, size),
        torch.zeros(1, 16, unet.config["cross_attention_dim"]),
    )
    names_first = SimpleNamespace(whole_calls=(0,))
    unet.reset()
    with sd_ext.sampling(unet, scheduler=names_first):
        for t in (999.0, 900.0):
            with FlopCounterMode(display=False) as counter:
                unet(x, torch.tensor(t), words)
            counted.append(counter.get_total_flops())
    return counted[1] / counted[0]


def of_pairs(arguments: argparse.Namespace) -> Sets:
    return Sets(4, 2, 2) if arguments.quick else Sets(arguments.pairs, arguments.pairs // 2, arguments.pairs)


def effort_of(arguments: argparse.Namespace) -> Effort:
    return Effort(1, 1) if arguments.quick else Effort(arguments.refine, Effort().steps)


PARTS = {"mixtures": mixtures, "embedded": embedded, "reuse": reuse}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; all of them by default")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=16, help="pairs to fit to, for the embedded model")
    parser.add_argument("--guidance", type=float, nargs="+", default=STRENGTHS, help="of the embedded model")
    parser.add_argument("--calls", type=int, nargs="+", default=COUNTS, help="of the embedded model")
    parser.add_argument(
        "--refine", type=int, default=Effort().derivatives, help="rounds of the long stage; 0 leaves it out"
    )
    parser.add_argument("--prompts", help="captions of the embedded model, a file; its own words by default")
    parser.add_argument("--scorer", help="folder of the judge that scorer.py trained")
    parser.add_argument("--quick", action="store_true", help="see that it runs; nothing is written")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(unknown)}")
    torch.set_grad_enabled(False)
    for name in arguments.parts or PARTS:
        for result, lines in PARTS[name](arguments):
            if arguments.quick:
                print("\n".join(lines))
            else:
                counted = {"seeds": arguments.seeds, "pairs": arguments.pairs}
                write(f"calibration_{name}", {**counted, **result}, "\n".join(lines))


if __name__ == "__main__":
    main()
