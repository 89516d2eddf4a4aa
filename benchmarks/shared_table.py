"""Would one table, fitted to many problems at once, be a better `auto`?

    python benchmarks/shared_table.py [--seeds 2] [--embedded]

A fit to one's own model needs that model. Here tables of one field are fitted, at guidance 1, 3, 5 and 7.5 and at 4 to
10 calls, to problems of the half "choose" of `auto.py` together: mixtures in few and many dimensions, near a sheet,
with heavy and with light tails. They are judged on the half "judge", which shares neither seeds nor sizes with it, and
on the embedded model, beside `auto` told the guidance. Errors are
root mean square differences from solutions of 300 calls of a third-order sampler; a share is that of cells (a problem,
a guidance, a number of calls) where the shared table is nearer than `auto`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from _report import write
from auto import HALVES, MIXTURES, data
from problems import SD
from torch import Tensor

from sd_ext.calibration.fit import Fitting
from sd_ext.calibration.measure import rmse
from sd_ext.calibration.problem import Predictions, Problem, Sets
from sd_ext.calibration.refine import Effort
from sd_ext.calibration.student import Course, Student
from sd_ext.calibration.tables import end, known_table
from sd_ext.calibration.teacher import table_of, teach
from sd_ext.schedulers import NoiseSchedule
from tests.schedulers.mixture import Mixture

COUNTS, GUIDANCE = (4, 5, 6, 8, 10), (1.0, 3.0, 5.0, 7.5)
WIDTH = 32
"""Dimensions of a start; problems of fewer leave the others 0, where every sampler is right."""
CLASSES = 4


class Several(Problem):
    """Mixtures that take turns: pair n is of mixture n modulo their number, guided towards one of its classes.

    Args:
        mixtures: the data of each.
        seed: of the starts and the classes' directions.
    """

    batch = 4096
    step = 1e-4

    def __init__(self, mixtures: Sequence[Mixture], seed: int):
        self.schedule, self.mixtures, self.seed = NoiseSchedule.from_config(SD), mixtures, seed
        self.parts = [classes(each, seed + i) for i, each in enumerate(mixtures)]

    def start(self, pairs: range) -> Tensor:
        starts = torch.zeros(len(pairs), WIDTH, dtype=torch.float64)
        for row, n in enumerate(pairs):
            wide = self.mixtures[n % len(self.mixtures)].means.shape[1]
            starts[row, :wide] = torch.from_numpy(np.random.default_rng((self.seed, n)).standard_normal(wide))
        return starts

    def predict(self, pairs: range, x: Tensor, t: float, alpha: float, sigma: float, guidance: float) -> Predictions:
        told = self.schedule.at([t])
        level = float(told.alpha[0]), float(told.sigma[0])
        number = np.array(pairs)
        free, guided = np.zeros(x.shape), np.zeros(x.shape)
        for i, (whole, parts) in enumerate(zip(self.mixtures, self.parts, strict=True)):
            wide, turn = whole.means.shape[1], number // len(self.mixtures)
            own = number % len(self.mixtures) == i
            if own.any():
                free[own, :wide] = whole.eps(x.numpy()[own, :wide], *level)
            for c, part in enumerate(parts):
                some = own & (turn % CLASSES == c)
                if some.any():
                    guided[some, :wide] = part.eps(x.numpy()[some, :wide], *level)
        eps = torch.from_numpy(free + guidance * (guided - free))
        return (x - sigma * eps) / alpha, (x - sigma * torch.from_numpy(free)) / alpha


def classes(whole: Mixture, seed: int) -> list[Mixture]:
    """A mixture in parts that lie together along a random direction."""
    order = np.argsort(whole.means @ np.random.default_rng(seed + 1000).standard_normal(whole.means.shape[1]))
    split = np.array_split(order, CLASSES)
    return [Mixture(whole.weights[s] / whole.weights[s].sum(), whole.means[s], whole.stds[s]) for s in split]


def fitting(problem: Problem, sets: Sets, guidance: float, effort: Effort) -> Fitting:
    return Fitting(problem, sets, guidance, 1, teach(problem, sets, guidance, table_of(SD)), SD, effort)


def judged(problem: Problem, guidance: float, pairs: range, students: dict[int, Student]) -> Iterator[dict[str, Any]]:
    """Errors of the shared tables and of `auto` on a problem, by count."""
    course = Course(problem, pairs, guidance)
    goal = end(course, known_table("dpm++ 3m exact karras", 300, SD))
    auto = "auto" if guidance > 2 else "auto low guidance"
    for calls, student in students.items():
        yield {
            "calls": calls,
            "shared": rmse(course.run(student).end, goal),
            "auto": rmse(end(course, known_table(auto, calls, SD)), goal),
        }


def embedded(sets: Sets) -> Problem:
    from calibration import pipeline

    from sd_ext.calibration.pipeline import PipelineProblem
    from sd_ext.calibration.prompts import of_pipeline
    from sd_ext.calibration.run import dealt

    prompts = dealt(of_pipeline(pipeline()), sets.pairs, 5)
    return PipelineProblem(pipeline(), prompts, [50_000 + i for i in range(sets.pairs)])


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = ["| problem | guidance | " + " | ".join(map(str, COUNTS)) + " |", "|---" * (len(COUNTS) + 2) + "|"]
    for name, guidance in dict.fromkeys((row["problem"], row["guidance"]) for row in rows):
        own = [row for row in rows if (row["problem"], row["guidance"]) == (name, guidance)]
        lines.append(f"| {name} | {guidance:g} | " + " | ".join(f"{r['shared'] / r['auto']:.2f}" for r in own) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="problems of each family to judge on")
    parser.add_argument("--embedded", action="store_true", help="judge on the embedded model too")
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    many, sets = [data(family, seed) for family in MIXTURES for seed in range(4)], Sets(160, 80, 0)
    rows: list[dict[str, Any]] = []
    for guidance in GUIDANCE:
        shared = fitting(Several(many, 0), sets, guidance, Effort(2, 3))
        students = {calls: shared.student(calls, None)[1] for calls in COUNTS}
        for place, family in enumerate(MIXTURES):
            for number in range(options.seeds):
                seed = HALVES["judge"] + 10 * place + number
                problem = Several([data(family, seed)], seed)
                found = judged(problem, guidance, range(64), students)
                rows += ({"problem": f"{family} {seed}", "guidance": guidance, **each} for each in found)
        if options.embedded and guidance > 1:
            of_model = Sets(0, 0, 12)
            found = judged(embedded(of_model), guidance, of_model.for_judgement, students)
            rows += ({"problem": "embedded", "guidance": guidance, **each} for each in found)
        print("\n".join(table(rows)), flush=True)
    ratios = np.array([row["shared"] / row["auto"] for row in rows])
    title = (
        f"# One table for all, beside `auto`\n\n{len(rows)} cells on problems that nothing was fitted to. The shared "
        f"table is nearer in {(ratios < 1).mean():.0%}; its error is {np.median(ratios):.2f} of that of `auto` in the "
        f"median, from {ratios.min():.2f} to {ratios.max():.2f}, above 1.05 in {(ratios > 1.05).sum()}.\n"
    )
    write("shared_table", {"rows": rows}, "\n".join([title, "Its error / that of `auto`:\n", *table(rows)]))


if __name__ == "__main__":
    main()
