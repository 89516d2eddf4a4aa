"""What a calibrated sampler is worth where it was not fitted: other sizes, LoRAs, checkpoints, a cache, half the way.

    python benchmarks/calibration_transfer.py [--lora FILE] [--other PIPELINE] [--seeds 5] [--pairs 16] [--quick]

Fitted to the embedded model at guidance 5, judged on captions and noise that were not fitted to, beside `auto` and a
fit made on the spot. Errors are root mean square differences from the converged ends of the pipeline that is judged. A
row is the mean over seeds and, in brackets, the least and the most.

    size       96 x 96 pixels instead of 64 x 64
    LoRA       with the LoRA in --lora in use, such as that of `sd-ext train lora embedded --data high-contrast`
    checkpoint another set of weights of the same network, such as one of the middle of its training; the results are of
               the embedded model's U-Net before its last 5,000 steps, which the history of this repository holds
    cache      with the U-Net of the preset "fast", which reuses deep features
    half way   image to image: from the teacher's state at the middle call to its end
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from _report import write
from calibration import (
    REFERENCE,
    REFERENCE_CALLS,
    Case,
    Measured,
    added,
    effort_of,
    of_pairs,
    pipeline,
    table,
)

from sd_ext.calibration.measure import rmse
from sd_ext.calibration.pipeline import PipelineProblem
from sd_ext.calibration.prompts import of_pipeline
from sd_ext.calibration.refine import Effort
from sd_ext.calibration.run import dealt
from sd_ext.calibration.student import Course, Student
from sd_ext.calibration.tables import end, known_table
from sd_ext.calibration.teacher import table_of, teach
from sd_ext.unets.presets import with_preset

GUIDANCE, COUNTS = 5.0, (5, 8)


@contextmanager
def as_it_is(pipe: Any) -> Iterator[Any]:
    yield pipe


@contextmanager
def with_lora(file: str, pipe: Any) -> Iterator[Any]:
    pipe.load_lora_weights(file)
    try:
        yield pipe
    finally:
        pipe.unload_lora_weights()


@contextmanager
def cached(pipe: Any) -> Iterator[Any]:
    own = pipe.unet
    pipe.unet = with_preset(own, "fast")
    try:
        yield pipe
    finally:
        pipe.unet = own


@contextmanager
def another(folder: str, pipe: Any) -> Iterator[Any]:
    from diffusers import StableDiffusionPipeline

    other = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    other.set_progress_bar_config(disable=True)
    yield other


def case_of(pipe: Any, prompts: list[str], seed: int, size: tuple[int, int] | None, given: argparse.Namespace) -> Case:
    """A pipeline on a seed's captions and noise, with its converged ends."""
    sets = of_pairs(given)
    problem = PipelineProblem(
        pipe, dealt(prompts, sets.pairs, seed), [20_000 * seed + i for i in range(sets.pairs)], size
    )
    teacher = teach(problem, sets, GUIDANCE, table_of(problem.config, calls=12 if given.quick else 72))
    reference = known_table(REFERENCE, 20 if given.quick else REFERENCE_CALLS, problem.config)
    return Case(problem, sets, GUIDANCE, teacher, end(Course(problem, sets.for_judgement, GUIDANCE), reference))


def moved(case: Case, student: Student, calls: int, rows: dict[str, Measured], row: str, effort: Effort | None) -> None:
    """A student judged on a case beside `auto` and, where an effort is given, a student of the case."""
    course = Course(case.problem, case.sets.for_judgement, GUIDANCE)
    auto = rmse(end(course, known_table("auto", calls, case.problem.config, case.guidance)), case.goal)
    here = rmse(course.run(student).end, case.goal)
    added(rows, row, "as fitted to the embedded model", here)
    added(rows, row, "auto", auto)
    added(rows, row, "ratio", here / auto)
    if effort:
        there = case.fitting(effort).student(calls, None)[1]
        added(rows, row, "fitted there", rmse(course.run(there).end, case.goal))


def half_way(case: Case, calls: int, rows: dict[str, Measured], effort: Effort) -> None:
    """From the middle call of a whole fit: its rest, and the known sampler's."""
    fitting = case.fitting(effort)
    fit, _ = fitting.fit(calls)
    call, pairs = calls // 2, case.sets.for_validation  # where the teacher's states were kept
    if fit.table is None:
        return
    state = case.teacher.target(pairs, float(fit.table.levels.lam[call]))
    errors = [
        rmse(end(fitting.on(pairs), fitting.rest(fit, call, fitted), state), fitting.goal(pairs))
        for fitted in (True, False)
    ]
    row = f"{calls} calls, half way"
    added(rows, row, "as fitted to the embedded model", errors[0])
    added(rows, row, "known sampler", errors[1])
    added(rows, row, "ratio", errors[0] / errors[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lora", help="a LoRA file for the embedded model")
    parser.add_argument("--other", help="a pipeline folder of the same shape")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=16)
    parser.add_argument("--calls", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--refine", type=int, default=Effort().derivatives, help="rounds of the long stage, 0 for none")
    parser.add_argument("--quick", action="store_true", help="see that it runs; nothing is written")
    given = parser.parse_args()
    torch.set_grad_enabled(False)
    pipe = pipeline()
    prompts = of_pipeline(pipe)
    cases: dict[str, tuple[Callable[[Any], Any], tuple[int, int] | None]] = {
        "itself": (as_it_is, None), "96 x 96": (as_it_is, (96, 96)), "cache": (cached, None),
    }  # fmt: skip
    if given.lora:
        cases["LoRA"] = (lambda pipe: with_lora(given.lora, pipe)), None
    if given.other:
        cases["other checkpoint"] = (lambda pipe: another(given.other, pipe)), None
    rows: dict[str, Measured] = {}
    for seed in range(given.seeds):
        fitted: dict[int, Student] = {}
        for name, (change, size) in cases.items():
            with change(pipe) as changed:
                case = case_of(changed, prompts, seed, size, given)
                for calls in COUNTS[:1] if given.quick else given.calls:
                    if name == "itself":
                        fitted[calls] = case.fitting(effort_of(given)).student(calls, None)[1]
                        half_way(case, calls, rows, effort_of(given))
                    moved(
                        case,
                        fitted[calls],
                        calls,
                        rows,
                        f"{calls} calls, {name}",
                        None if name == "itself" else effort_of(given),
                    )
            print(f"seed {seed}: {name}", flush=True)
        lines = "\n".join(table(f"Where a fit to the embedded model goes, guidance {GUIDANCE:g}", rows))
        if given.quick:
            print(lines)
        else:  # after each seed: a run of hours may be stopped
            write("calibration_transfer", {"seeds": seed + 1, "pairs": given.pairs, "rows": rows}, lines)


if __name__ == "__main__":
    main()
