"""Fits what `auto` is with few calls: one table for many problems at once.

    python benchmarks/fit_auto.py [--guidance 1 2 3 ...] [--calls 4 5 6 ...] [--write] [--again]

A calibration fits a table to one model. This fits tables of one field to mixtures in few and many dimensions, near a
sheet, with heavy and with light tails together, each scaled so that what `auto` chose among known samplers errs alike
on all. It is done for each strength of guidance and number of calls by itself. A table is kept where, on mixtures that
it was not fitted to, its error is below 0.9 of the known sampler's in the geometric mean, and on the embedded model
below it. All of this is the half "choose" of `auto.py`, which judges the result on the other half. --write puts the
tables into the package, beside those of other strengths and numbers that are there.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import RESULTS, write
from auto import CAPTIONS, MIXTURES, data
from problems import SD
from torch import Tensor

import sd_ext
from sd_ext import whole
from sd_ext.calibration.fit import Fitting
from sd_ext.calibration.measure import rmse
from sd_ext.calibration.pipeline import PipelineProblem
from sd_ext.calibration.problem import Predictions, Problem, Sets
from sd_ext.calibration.prompts import of_pipeline
from sd_ext.calibration.refine import Effort
from sd_ext.calibration.run import dealt
from sd_ext.calibration.student import Course, Student
from sd_ext.calibration.tables import end, known_table
from sd_ext.calibration.teacher import Teacher, table_of, teach
from sd_ext.reading import read_json
from sd_ext.schedulers import NoiseSchedule, Table
from sd_ext.schedulers.samplers.auto import choose
from sd_ext.schedulers.samplers.fitted import FILE
from tests.schedulers.mixture import Mixture

GUIDANCE = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.5, 10.0)
COUNTS = (4, 5, 6, 7, 8, 9, 10, 12)
WIDTH = 32
"""Dimensions of a start; problems of fewer leave the others 0, where every sampler is right."""
CLASSES, EACH = 4, 8
SEEDS, OTHER_SEEDS = range(5), range(10, 13)
"""Of the mixtures of each family: those that are fitted to, and those that a table must prove itself on."""
WORTH, NO_WORSE = 0.9, 1.05
"""Of the known sampler's error: the most on mixtures, and on the embedded model, where a table is kept."""
NETWORK, HEAVIER = 3, 2.0
"""With --network: how many mixtures' worth of pairs the embedded model has, and by how much more its errors count."""


class Several(Problem):
    """Mixtures that take turns: pair n is of mixture n modulo their number, guided towards one of its classes.

    Args:
        mixtures: the data of each.
        seed: of the starts and the classes' directions.
        scales: what each mixture's space is multiplied by. Tables are linear: they follow.
        network: one problem more, which takes `NETWORK` turns after the mixtures'; its latents are flattened.
    """

    batch = 4096

    def __init__(
        self,
        mixtures: Sequence[Mixture],
        seed: int,
        scales: Sequence[float] | None = None,
        network: PipelineProblem | None = None,
    ):
        self.schedule, self.mixtures, self.seed = NoiseSchedule.from_config(SD), mixtures, seed
        self.network, self.many = network, len(mixtures) + (NETWORK if network else 0)
        self.width = network.starts[0].numel() if network else WIDTH
        self.step = 3e-3 if network else 1e-4
        self.parts = [classes(each, seed + i) for i, each in enumerate(mixtures)]
        self.scales = np.ones(self.many) if scales is None else np.array(scales)

    def scale(self, pairs: range) -> np.ndarray:
        return self.scales[np.array(pairs, int) % self.many][:, None]

    def of_network(self, pairs: range) -> tuple[np.ndarray, range]:
        """Which of these pairs are the network's, and their numbers there."""
        number = np.array(pairs, int)
        own = np.flatnonzero(number % self.many >= len(self.mixtures))
        first = number[own[:1]] // self.many * NETWORK + number[own[:1]] % self.many - len(self.mixtures)
        return own, range(*(int(first[0]), int(first[0]) + len(own)) if len(own) else (0,))

    def start(self, pairs: range) -> Tensor:
        starts = np.zeros((len(pairs), self.width))
        for row, n in enumerate(pairs):
            if (place := n % self.many) < len(self.mixtures):
                wide = self.mixtures[place].means.shape[1]
                starts[row, :wide] = np.random.default_rng((self.seed, n)).standard_normal(wide)
        if self.network:
            own, numbers = self.of_network(pairs)
            starts[own] = self.network.start(numbers).flatten(1).numpy()
        return torch.from_numpy(starts * self.scale(pairs))

    def predict(self, pairs: range, x: Tensor, t: float, alpha: float, sigma: float, guidance: float) -> Predictions:
        told = self.schedule.at([t])
        level = float(told.alpha[0]), float(told.sigma[0])
        number, scale = np.array(pairs), self.scale(pairs)
        here = x.numpy() / scale
        free, guided = np.zeros(x.shape), np.zeros(x.shape)
        for i, (mixture, parts) in enumerate(zip(self.mixtures, self.parts, strict=True)):
            wide, turn = mixture.means.shape[1], number // self.many
            own = number % self.many == i
            if own.any():
                free[own, :wide] = mixture.eps(here[own, :wide], *level)
            for c, part in enumerate(parts):
                some = own & (turn % CLASSES == c)
                if some.any():
                    guided[some, :wide] = part.eps(here[some, :wide], *level)
        eps = free + guidance * (guided - free)
        x0 = [(here - sigma * each) / alpha for each in (eps, free)]
        own, numbers = self.of_network(pairs) if self.network else ((), range(0))
        if self.network and len(own):
            latents = torch.from_numpy(here[own]).reshape(-1, *self.network.starts.shape[1:]).float()
            made = self.network.predict(numbers, latents, t, alpha, sigma, guidance)
            for each, one in zip(x0, (made[0], made[0] if made[1] is None else made[1]), strict=True):
                each[own] = one.flatten(1).double().numpy()
        return tuple(torch.from_numpy(each * scale) for each in x0)


def scaled(teacher: Teacher, scale: np.ndarray) -> Teacher:
    """The teacher in spaces that are multiplied by these numbers, one for each pair."""
    factors = torch.from_numpy(scale)
    return replace(teacher, states=teacher.states * factors[: teacher.states.shape[1]], end=teacher.end * factors)


def classes(mixture: Mixture, seed: int) -> list[Mixture]:
    """A mixture in parts that lie together along a random direction."""
    order = np.argsort(mixture.means @ np.random.default_rng(seed + 1000).standard_normal(mixture.means.shape[1]))
    split = np.array_split(order, CLASSES)
    return [Mixture(mixture.weights[s] / mixture.weights[s].sum(), mixture.means[s], mixture.stds[s]) for s in split]


def known(guidance: float, calls: int) -> Table:
    """What `auto` is without a fitted table."""
    choice = choose(guidance, calls)
    scheduler = sd_ext.make_scheduler(choice.solver, SD, grid=choice.grid)
    scheduler.set_timesteps(calls)
    return scheduler.table()


def of_each(errors: Tensor, many: int) -> np.ndarray:
    """Root mean square error of each mixture."""
    return np.array([float(errors[i::many].square().mean().sqrt()) for i in range(many)])


class Fits:
    """Tables for one strength of guidance, each with how it compares where it was not fitted."""

    def __init__(self, guidance: float, network: bool):
        self.guidance = guidance
        self.own = [data(family, seed) for family in MIXTURES for seed in SEEDS]
        self.others = [data(family, seed) for family in MIXTURES for seed in OTHER_SEEDS]
        many = len(self.own) + (NETWORK if network else 0)
        self.sets = Sets(EACH * many, EACH * many // 2, 0)
        self.network = embedded(EACH * 3 // 2 * NETWORK) if network else None
        self.plain = teach(Several(self.own, 0, None, self.network), self.sets, guidance, table_of(SD))
        self.courses = [
            Course(Several(self.others, 500), range(6 * len(self.others)), guidance),
            Course(embedded(), range(2 * len(CAPTIONS["choose"])), guidance),
        ]
        self.goals = [end(course, known_table("dpm++ 3m exact karras", 150, SD)) for course in self.courses]

    def fit(self, calls: int) -> Student:
        course = Course(Several(self.own, 0, None, self.network), self.sets.for_fit, self.guidance)
        errors = of_each(
            end(course, known(self.guidance, calls)) - self.plain.end[: self.sets.fit], course.problem.many
        )
        scales = np.exp(np.log(errors).mean()) / errors
        scales[len(self.own) :] *= HEAVIER
        problem = Several(self.own, 0, scales, self.network)
        teacher = scaled(self.plain, problem.scale(range(self.sets.pairs)))
        effort = Effort(1 if self.network else 2, 3)
        return Fitting(problem, self.sets, self.guidance, 1, teacher, SD, effort).student(calls, None)[1]

    def compare(self, student: Student, calls: int) -> dict[str, Any]:
        """Its error / the known sampler's, on the other mixtures and on the embedded model."""
        ends = [(course.run(student).end, end(course, known(self.guidance, calls))) for course in self.courses]
        of_mixtures = [of_each(one - self.goals[0], len(self.others)) for one in ends[0]]
        ratios = of_mixtures[0] / of_mixtures[1]
        of_model = [rmse(one, self.goals[1]) for one in ends[1]]
        mean, network = float(np.exp(np.log(ratios).mean())), of_model[0] / of_model[1]
        return {
            "guidance": self.guidance, "calls": calls, "known": " ".join(choose(self.guidance, calls)[1:]),
            "mixtures": mean, "worst": float(ratios.max()), "embedded": network,
            "kept": mean < WORTH and network <= NO_WORSE,
        }  # fmt: skip


def embedded(fitted: int = 0) -> PipelineProblem:
    """The embedded model.

    Args:
        fitted: how many pairs of its own words to fit to; 0 takes the captions that tables are compared on.
    """
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(sd_ext.pretrained_path())
    pipe.set_progress_bar_config(disable=True)
    captions = dealt(of_pipeline(pipe), fitted, 50) if fitted else 2 * list(CAPTIONS["choose"])
    return PipelineProblem(pipe, captions, [(60_000 if fitted else 7000) + i for i in range(len(captions))])


def as_data(student: Student, guidance: float) -> dict[str, Any]:
    """The numbers of a table, to eight digits."""

    def short(values: Any) -> list[float]:
        return [float(f"{value:.8g}") for value in values]

    return {
        "guidance": guidance, "calls": student.calls, "lam": short(student.lam), "told": short(student.told),
        "weights": [short(each) for each in student.weights],
    }  # fmt: skip


def of_data(data: dict[str, Any]) -> Student:
    """The student whose numbers these are."""
    return Student(
        NoiseSchedule.from_config(SD),
        np.array(data["lam"]),
        np.array(data["told"]),
        tuple(np.array(each) for each in data["weights"]),
        1,
    )


def of_guidance(
    guidance: float, counts: Sequence[int], there: Sequence[dict[str, Any]], network: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """How each table compares, and those that are kept; in a process of its own, on one thread.

    Args:
        there: tables to compare instead of fitting some; those of other strengths are passed over.
        network: whether to fit to the embedded model too.
    """
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    fits, rows, tables = Fits(guidance, network), [], []
    known = {table["calls"]: of_data(table) for table in there if table["guidance"] == guidance}
    for calls in known if there else counts:
        student = known[calls] if there else fits.fit(calls)
        rows.append(row := fits.compare(student, calls))
        if row["kept"]:
            tables.append(as_data(student, guidance))
        print(json.dumps(row), flush=True)
    return rows, tables


def report(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        "# Tables fitted to many problems at once\n",
        "Error / that of the known sampler that `auto` was, on mixtures that were not fitted to (geometric mean of "
        f"{len(MIXTURES) * len(OTHER_SEEDS)}, and the worst) and on the embedded model.\n",
        "| guidance | calls | known sampler | mixtures | worst | embedded model | kept |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {r['guidance']:g} | {r['calls']} | {r['known']} | {r['mixtures']:.2f} | {r['worst']:.2f} | "
            f"{r['embedded']:.2f} | {'yes' if r['kept'] else 'no'} |"
            for r in rows
        ),
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--guidance", type=float, nargs="+", default=GUIDANCE)
    parser.add_argument("--calls", type=int, nargs="+", default=COUNTS)
    parser.add_argument("--write", action="store_true", help="put the tables that are kept into the package")
    parser.add_argument("--network", action="store_true", help="fit to the embedded model as well")
    parser.add_argument("--again", action="store_true", help="fit nothing; compare the tables that are there")
    options = parser.parse_args()
    count = int(os.environ.get("WORKERS", os.cpu_count() or 1))
    path, results = Path(sd_ext.__file__).parent / "schedulers" / "samplers" / FILE, RESULTS / "fit_auto.json"
    there = read_json(path, dict[str, Any])["tables"] if options.again else []
    many = len(options.guidance)
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        found = list(
            pool.map(of_guidance, options.guidance, [options.calls] * many, [there] * many, [options.network] * many)
        )
    rows, tables = [row for each, _ in found for row in each], [table for _, each in found for table in each]
    if not options.write:
        print(report(rows))
        return
    rows = together(rows, read_json(results, dict[str, Any])["rows"] if results.exists() else [])
    kept = {(row["guidance"], row["calls"]) for row in rows if row["kept"]}
    tables = together(tables, read_json(path, dict[str, Any])["tables"])
    tables = [table for table in tables if (table["guidance"], table["calls"]) in kept]
    guidance = sorted({row["guidance"] for row in rows})
    whole.write_text(path, json.dumps({"guidance": guidance, "tables": tables}) + "\n")
    write("fit_auto", {"rows": rows}, report(rows))


def together(new: Sequence[dict[str, Any]], old: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by guidance and calls, sorted; new ones go before old ones."""
    every = {(row["guidance"], row["calls"]): row for row in (*old, *new)}
    return [every[key] for key in sorted(every)]


if __name__ == "__main__":
    main()
