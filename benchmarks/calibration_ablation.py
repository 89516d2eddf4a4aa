"""What each part of a calibration is worth, how many pairs it needs, and what transfers to other guidance.

    python benchmarks/calibration_ablation.py [parts] [pairs] [fields] [--seeds 5] [--pairs 16] [--calls 5] [--quick]

On the embedded model at guidance 7.5, as `calibration.py` measures it. Results are written after each seed.

    parts      grid alone, one field, two fields, refined or not; fits at 5 and 10 at 7.5, and what lies between them
    pairs      the greedy stage with 2, 4, 8, ... pairs up to --pairs, judged on the same others
    fields     at guidance 1.5, 4 and 7.5: two fields, one on the same levels, and the one that the second set chooses
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from _report import write
from calibration import Case, Found, Measured, added, effort_of, guided, of_pairs, table

from sd_ext.calibration.fit import Shape
from sd_ext.calibration.greedy import greedy
from sd_ext.calibration.measure import rmse
from sd_ext.calibration.problem import Sets
from sd_ext.calibration.refine import Effort
from sd_ext.calibration.student import Student, zero

GUIDANCE, ASIDE = 7.5, (5.0, 10.0)


def of_parts(arguments: argparse.Namespace) -> Iterator[Found]:
    """At guidance 7.5: what each part of the method is worth and what transfers; by the greedy stage alone where the
    long one is left out.
    """
    parts: dict[str, Measured] = {}
    transfer: dict[str, Measured] = {}
    effort, counts = effort_of(arguments), arguments.calls
    for seed in range(arguments.seeds):
        case = guided(GUIDANCE, seed, of_pairs(arguments), arguments)
        fitting, sets = case.fitting(effort), case.sets
        for calls in counts:
            grid, start = fitting.best_start(calls)
            plain = zero(start.schedule, start.lam, 2)
            one = greedy(fitting.on(sets.for_fit), case.teacher, zero(start.schedule, start.lam, 1))
            made, refined = {"grid alone": plain, "one field": one, "two fields": start}, start
            if effort.derivatives:
                refined = fitting.refined(start, True)
                made["one field, refined"] = case.fitting(effort, 1).refined(one, True)
                made["two fields, refined"] = refined
            for part, student in made.items():
                added(parts, part, f"{calls} calls", rmse(case.judged(student), case.goal))
            transferred(case, calls, grid, refined, seed, transfer, arguments)
        yield (
            {"seeds": seed + 1, "parts": parts, "transfer": transfer},
            [
                *table("What each part is worth, guidance 7.5", parts),
                *table("Transfer over guidance", transfer),
            ],
        )


def needed(arguments: argparse.Namespace) -> Iterator[Found]:
    """At guidance 7.5: how many pairs the greedy stage needs. Half as many others choose the grid; all are judged on
    the same ones, half of the most.
    """
    rows: dict[str, Measured] = {}
    most = of_pairs(arguments)
    most = replace(most, judge=max(2, most.fit // 2))
    for seed in range(arguments.seeds):
        case = guided(GUIDANCE, seed, most, arguments)
        for fit in [2**power for power in range(1, most.fit.bit_length())]:
            fewer = replace(case, sets=Sets(fit, fit // 2, 0))
            for calls in arguments.calls:
                student = fewer.fitting(Effort()).best_start(calls)[1]
                added(rows, f"{fit} pairs", f"{calls} calls", rmse(case.judged(student), case.goal))
        yield {"seeds": seed + 1, "rows": rows}, [*table("Pairs, guidance 7.5, the greedy stage", rows)]


def of_fields(arguments: argparse.Namespace) -> Iterator[Found]:
    """Two fields, one field on the same levels, and the one that is better on the pairs that choose."""
    rows: dict[str, Measured] = {}
    effort = effort_of(arguments)
    for seed in range(arguments.seeds):
        for guidance in (1.5, 4.0, 7.5):
            case = guided(guidance, seed, of_pairs(arguments), arguments)
            fitting = case.fitting(effort)
            for calls in arguments.calls:
                two = fitting.student(calls, None)[1]
                made = {"two fields": two, "one field": fitting.companion(two)}
                errors = {name: rmse(case.judged(student), case.goal) for name, student in made.items()}
                chosen = min(made, key=lambda name: fitting.error(made[name], case.sets.for_validation))
                for name, error in {**errors, "chosen": errors[chosen], "better": min(errors.values())}.items():
                    added(rows, f"guidance {guidance:g}, {calls} calls", name, error)
        yield {"seeds": seed + 1, "rows": rows}, [*table("One field or two", rows)]


def transferred(
    case: Case, calls: int, grid: str, student: Student, seed: int, rows: dict[str, Measured], arguments: Any
) -> None:
    """Fits at 5 and 10 with the levels of 7.5, judged there and at 7.5, and the one between them."""
    shape, effort, others = Shape.of(grid, student), effort_of(arguments), {}
    added(rows, f"{calls} calls, judged at 7.5", "fitted at 7.5", rmse(case.judged(student), case.goal))
    for guidance in ASIDE:
        there = guided(guidance, seed, case.sets, arguments)
        others[guidance] = there.fitting(effort).student(calls, shape)[1]
        own = rmse(there.judged(others[guidance]), there.goal)
        added(rows, f"{calls} calls, judged at {guidance:g}", f"fitted at {guidance:g}", own)
        moved = rmse(there.judged(student), there.goal)
        added(rows, f"{calls} calls, judged at {guidance:g}", "fitted at 7.5", moved)
        here = rmse(case.judged(others[guidance]), case.goal)
        added(rows, f"{calls} calls, judged at 7.5", f"fitted at {guidance:g}", here)
    weights = tuple((a + b) / 2 for a, b in zip(others[5.0].weights, others[10.0].weights, strict=True))
    between = replace(student, weights=weights)
    added(rows, f"{calls} calls, judged at 7.5", "between 5 and 10", rmse(case.judged(between), case.goal))


PARTS = {"parts": of_parts, "pairs": needed, "fields": of_fields}
FILES = {"parts": "calibration_ablation", "pairs": "calibration_pairs", "fields": "calibration_fields"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"{', '.join(PARTS)}; all by default")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--pairs", type=int, default=16, help="to fit to")
    parser.add_argument("--calls", type=int, nargs="+", default=(5,))
    parser.add_argument("--refine", type=int, default=Effort().derivatives, help="rounds of the long stage, 0 for none")
    parser.add_argument("--prompts", help="captions, a file; the embedded model's own words by default")
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
                write(FILES[name], {"pairs": arguments.pairs, **result}, "\n".join(lines))


if __name__ == "__main__":
    main()
