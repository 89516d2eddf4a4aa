"""Few calls on a set that others know: samplers on Fashion-MNIST, by FID and KID.

    python benchmarks/fashion_model.py fashion --out runs/fashion
    python benchmarks/fashion.py fashion runs/fashion [--guidance 3] [--calls 4 5 6 8 10] [--pictures 1000] [--seeds 5]

A class-conditional U-Net with guidance draws pictures with a few calls by each of these, all on the same network:

- every Diffusers setting of `error_vs_calls.py`; the three with the least error at a count are drawn with;
- the best known sampler of this package;
- GITS (arXiv 2405.11326): the grid of least total cost by dynamic programming, with iPNDM and with DPM++ 2M;
- like LD3 (arXiv 2405.15506): levels and told timesteps of DPM++ 2M, found by gradients through the whole solve;
- like BNS and S4S (arXiv 2403.01329, 2502.17423): all weights of one field, levels and told timesteps, by gradients;
  both begin on the grid, of those that a calibration tries, on which DPM++ 2M is best;
- `sd_ext.calibration`: one field and two fields, and the greedy stage of two.

What is fitted is fitted to 16 pairs of class and noise and chosen on 8 others; error and pictures are of others still.
FID and KID compare features of a classifier with those of the 10,000 test pictures, over several seeds; intervals are
95 % of the mean. The teacher's own pictures, 72 calls, stand beside them. `--only gradient --keep` measures the methods
with this in their name again and keeps the other rows of the results. `--name fashion_2000` writes to files of another
name, for a network of other training.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from _report import RESULTS, write
from error_vs_calls import theirs
from fashion_model import (
    BF16,
    NO_CLASS,
    SD,
    load_classifier,
    load_unet,
    packed,
    passes,
    read_set,
    scaled,
    trained_steps,
    unpacked,
)
from rich.progress import track
from scipy.linalg import sqrtm
from torch import Tensor

import sd_ext
from sd_ext.calibration.fit import Fitting
from sd_ext.calibration.measure import spread
from sd_ext.calibration.problem import Predictions, Problem, Sets
from sd_ext.calibration.starts import GRIDS
from sd_ext.calibration.student import Student, width, zero
from sd_ext.calibration.tables import best_known, end, known_table
from sd_ext.calibration.teacher import table_of, teach

SETS = Sets(fit=16, validate=8, judge=64)
MANY = 1_000_000  # pairs from here on are drawn for FID

Draw = Callable[[range], Tensor]
"""From pairs to the pictures a sampler makes of them (pairs, 4, 14, 14)."""


class Fashion(Problem):
    """Pair n is a class, n modulo 10, and noise of its own."""

    batch = 250

    def __init__(self, unet: Any):
        self.unet, self.schedule = unet, sd_ext.NoiseSchedule.from_config(SD)

    def start(self, pairs: range) -> Tensor:
        noises = [torch.randn(4, 14, 14, generator=torch.Generator().manual_seed(n)) for n in pairs]
        return torch.stack(noises) if noises else torch.empty(0, 4, 14, 14)

    def predict(self, pairs: range, x: Tensor, t: float, alpha: float, sigma: float, guidance: float) -> Predictions:
        return self.differentiable(pairs, x, torch.tensor(t), torch.tensor(alpha), torch.tensor(sigma), guidance)

    def differentiable(
        self, pairs: range, x: Tensor, t: Tensor, alpha: Tensor, sigma: Tensor, guidance: float
    ) -> Predictions:
        told = torch.tensor([n % 10 for n in pairs])
        if guidance <= 1:
            v = self.unet(x, t.expand(len(x)), told).sample
            return alpha * x - sigma * v, None
        both = torch.cat([torch.full_like(told, NO_CLASS), told])
        free, with_class = self.unet(torch.cat([x, x]), t.expand(2 * len(x)), both).sample.chunk(2)
        v = free + guidance * (with_class - free)
        return alpha * x - sigma * v, alpha * x - sigma * free


# ---- samplers --------------------------------------------------------------------------------------------------------


def of_diffusers(problem: Fashion, make: Callable[[], Any], guidance: float) -> Draw:
    """Draws with a scheduler of Diffusers."""

    def draw(pairs: range) -> Tensor:
        made = []
        for part in problem.batches(range(len(pairs))):
            some = pairs[part.start : part.stop]
            scheduler = make()
            x = problem.start(some) * scheduler.init_noise_sigma
            for t in scheduler.timesteps:
                scaled_x = scheduler.scale_model_input(x, t)
                level = problem.schedule.at([float(t)])
                alpha, sigma = float(level.alpha[0]), float(level.sigma[0])
                x0 = problem.predict(some, scaled_x, float(t), alpha, sigma, guidance)[0]
                x = scheduler.step((scaled_x - alpha * x0) / sigma, t, x, return_dict=False)[0]
            made.append(x)
        return torch.cat(made)

    return draw


class Learned(torch.nn.Module):
    """A sampler whose numbers are found by gradients through the whole solve.

    Args:
        student: where it begins: levels, told levels, weights of one field.
        weights: whether the weights are learned too, or are those of DPM++ 2M on the levels.
    """

    def __init__(self, problem: Fashion, student: Student, weights: bool):
        super().__init__()
        self.problem, self.calls, self.first = problem, student.calls, float(student.lam[0])
        self.steps = torch.nn.Parameter(torch.tensor(np.log(np.diff(student.lam)), dtype=torch.float32))
        self.told = torch.nn.Parameter(torch.zeros(student.calls))
        self.weights = torch.nn.ParameterList(
            torch.nn.Parameter(torch.tensor(each, dtype=torch.float32)) for each in student.weights
        )
        self.learns_weights = weights
        lam = np.asarray(problem.schedule.lam, float)
        self.known = torch.tensor(lam[::-1].copy(), dtype=torch.float32)

    def lam(self) -> Tensor:
        return torch.cat([torch.tensor([self.first]), self.first + self.steps.exp().cumsum(0)])

    def timestep(self, lam: Tensor) -> Tensor:
        """The timestep of a lambda, linear between training timesteps."""
        last = len(self.known) - 1
        i = torch.searchsorted(self.known, lam.detach()).clamp(1, last)
        low, high = self.known[i - 1], self.known[i]
        return last - (i - 1 + ((lam - low) / (high - low)).clamp(0, 1))

    def of_call(self, i: int, lam: Tensor) -> Tensor:
        """Weights of the differences d_j - d_0 in call i: its own, or DPM++ 2M's (arXiv 2211.01095, alg. 2)."""
        if self.learns_weights:
            return self.weights[i]
        if i in (0, self.calls - 1):
            return torch.zeros(1)
        h, before = lam[i + 1] - lam[i], lam[i] - lam[i - 1]
        share = torch.sigmoid(2 * lam[i + 1]).sqrt() * (-torch.expm1(-h)) * h / (2 * before)
        return -share[None]

    def run(self, pairs: range, guidance: float) -> Tensor:
        lam, x, past = self.lam(), self.problem.start(pairs), []
        alpha, sigma = torch.sigmoid(2 * lam).sqrt(), torch.sigmoid(-2 * lam).sqrt()
        for i in range(self.calls):
            t = self.timestep(lam[i] + self.told[i])
            past.insert(0, self.problem.differentiable(pairs, x, t, alpha[i], sigma[i], guidance)[0])
            a = sigma[i + 1] / sigma[i] if i + 1 < self.calls else torch.tensor(0.0)
            b = (alpha[i + 1] if i + 1 < self.calls else 1.0) - a * alpha[i]
            x = a * x + b * past[0]
            for j, weight in enumerate(self.of_call(i, lam), 1):
                x = x + weight * (past[j] - past[0]) if j < len(past) else x
        return x

    def fit(self, fitting: Fitting, steps: int, rate: float = 1e-2) -> Learned:
        """Adam with a cosine rate; the best on the pairs for validation is kept."""
        optimizer = torch.optim.Adam(self.parameters(), rate)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        fit, check = SETS.for_fit, SETS.for_validation
        best, kept = math.inf, {name: value.clone() for name, value in self.state_dict().items()}
        for step in range(steps + 1):
            with torch.no_grad():
                error = float((self.run(check, fitting.guidance) - fitting.goal(check)).square().mean())
            if error < best:
                best, kept = error, {name: value.clone() for name, value in self.state_dict().items()}
            if step == steps:
                break
            with torch.enable_grad():
                loss = (self.run(fit, fitting.guidance) - fitting.goal(fit)).square().mean()
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            cosine.step()
        self.load_state_dict(kept)
        return self

    def draw(self, guidance: float) -> Draw:
        def draw(pairs: range) -> Tensor:
            parts = self.problem.batches(range(len(pairs)))
            return torch.cat([self.run(pairs[part.start : part.stop], guidance) for part in parts])

        return draw


def multistep(student: Student) -> Student:
    """The student of one field with the weights of DPM++ 2M."""
    lam, alpha = student.lam, student.levels.alpha
    for i in range(1, student.calls - 1):
        h, before = lam[i + 1] - lam[i], lam[i] - lam[i - 1]
        weights = np.zeros(sum(width(1, i)))
        weights[0] = -alpha[i + 1] * -np.expm1(-h) * h / (2 * before)
        student = student.with_weights(i, weights)
    return student


@dataclass(frozen=True)
class Method:
    """A way to draw.

    Args:
        name: as shown.
        draw: how.
        seconds: what fitting it took.
    """

    name: str
    draw: Draw
    seconds: float = 0.0


def best_begin(problem: Fashion, fitting: Fitting, calls: int) -> Student:
    """DPM++ 2M on the grid on which it is best, on the pairs for validation."""
    one = Fitting(problem, SETS, fitting.guidance, 1, fitting.teacher, SD)
    begins = [multistep(zero(problem.schedule, place(fitting.teacher, calls), 1)) for place in GRIDS.values()]
    return min(begins, key=lambda student: one.error(student, SETS.for_validation))


def methods(
    problem: Fashion, fitting: Fitting, calls: int, gradient_steps: int, best: int = 3, only: str = ""
) -> list[Method]:
    """Every way to draw with so many calls, or those with a word in their names: of "Diffusers", "known here", "GITS
    grid" or of what is fitted.
    """
    guidance, judged = fitting.guidance, SETS.for_validation

    measured: list[tuple[float, Method]] = []
    for setting in theirs() if only in "Diffusers" else []:
        draw = of_diffusers(problem, lambda setting=setting: setting.make(calls), guidance)
        try:
            if len(setting.make(calls).timesteps) != calls:
                continue
            error = float((draw(judged) - fitting.goal(judged)).square().mean().sqrt())
        except (IndexError, AssertionError):  # Diffusers looks repeated timesteps up wrongly and loses its place
            continue
        measured.append((error, Method(f"Diffusers: {setting.label}", draw)))
    made = [method for _, method in sorted(measured, key=lambda each: each[0])[:best]]

    def learned(name: str, make: Callable[[], Any], draw: Callable[[Any], Draw]) -> None:
        if only not in name:
            return
        started = time.perf_counter()
        found = make()
        made.append(Method(name, draw(found), time.perf_counter() - started))

    def of_table(table: Any) -> Draw:
        return lambda pairs: end(fitting.on(pairs), table)

    def of_student(student: Student) -> Draw:
        return lambda pairs: fitting.on(pairs).run(student).end

    if only in "known here":
        known = best_known(fitting.on(judged), fitting.goal(judged), calls, SD)[0]
        made.append(Method(f"known here: {known}", of_table(known_table(known, calls, SD))))
    for name in ("ipndm", "dpm++ 2m") if only in "GITS grid" else ():
        lam = GRIDS["by cost"](fitting.teacher, calls)
        scheduler = sd_ext.make_scheduler(name, SD)
        scheduler.set_timesteps(sigmas=[*np.exp(-lam), 0.0])
        made.append(Method(f"GITS grid, {name}", of_table(scheduler.table())))
    for name, weights in (("levels and told times by gradient (as LD3)", False), ("one field by gradient", True)):
        learned(
            name,
            lambda weights=weights: Learned(problem, best_begin(problem, fitting, calls), weights).fit(
                fitting, gradient_steps
            ),
            lambda found: found.draw(guidance),
        )
    one = Fitting(problem, SETS, guidance, 1, fitting.teacher, SD)
    learned("calibrated, one field", lambda: one.student(calls, None)[1], of_student)
    learned("calibrated, two fields, greedy only", lambda: fitting.best_start(calls)[1], of_student)
    learned("calibrated, two fields", lambda: fitting.student(calls, None)[1], of_student)
    return made


# ---- measures --------------------------------------------------------------------------------------------------------


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The Fréchet distance of two Gaussians fitted to features (n, d)."""
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = np.real(sqrtm(ca @ cb))
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * root))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """KID: the unbiased squared MMD with the kernel (x y / d + 1)^3 (Binkowski et al. 2018, arXiv 1801.01401)."""
    d = a.shape[1]
    aa, bb, ab = ((x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    m, n = len(a), len(b)
    inner = (aa.sum() - np.trace(aa)) / (m * (m - 1)) + (bb.sum() - np.trace(bb)) / (n * (n - 1))
    return float(inner - 2 * ab.mean())


def mean_and_interval(values: list[float]) -> dict[str, float]:
    """The mean and half of its 95 % interval (Student's t)."""
    from scipy.stats import t

    half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else math.nan
    return {"mean": float(np.mean(values)), "half": float(half)}


class Judge:
    """Compares pictures with the test set's."""

    def __init__(self, data: Path, out: Path):
        self.classifier = load_classifier(out)
        self.real = self.features(packed(scaled(read_set(data, "t10k")[0])))

    def features(self, x: Tensor) -> np.ndarray:
        pixels = unpacked(x).clamp(-1, 1)
        return torch.cat([self.classifier.features(part) for part in pixels.split(500)]).double().numpy()

    def right(self, x: Tensor, first: int) -> float:
        """Share of pictures that are seen as the class they were told."""
        pixels = unpacked(x).clamp(-1, 1)
        seen = torch.cat([self.classifier(part).argmax(1) for part in pixels.split(500)])
        return float((seen == (torch.arange(first, first + len(x)) % 10)).double().mean())

    def measure(self, draw: Draw, pictures: int, seeds: int) -> dict[str, dict[str, float]]:
        found: dict[str, list[float]] = {"fid": [], "kid": [], "right": []}
        for seed in range(seeds):
            first = MANY + seed * 100_000
            with passes():
                x = draw(range(first, first + pictures)).float()
            features = self.features(x)
            found["fid"].append(frechet(self.real, features))
            found["kid"].append(1000 * kernel_distance(self.real[:: len(self.real) // 2000], features))
            found["right"].append(100 * self.right(x, first))
        return {name: mean_and_interval(values) for name, values in found.items()}


# ---- what is shown ---------------------------------------------------------------------------------------------------


def sheet(rows: list[tuple[str, Tensor]], path: Path) -> None:
    """Rows of pictures of the same starts, by method."""
    from PIL import Image, ImageDraw, ImageFont

    side, gap, left = 56, 3, 300
    wide = len(rows[0][1])
    canvas = Image.new("RGB", (left + wide * (side + gap), len(rows) * (side + gap)), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(13)
    for r, (name, x) in enumerate(rows):
        pen.text((4, r * (side + gap) + side // 2 - 8), name, fill="black", font=font)
        for i, picture in enumerate((unpacked(x).clamp(-1, 1)[:, 0] + 1) * 127.5):
            tile = Image.fromarray(picture.round().to(torch.uint8).numpy()).resize((side, side))
            canvas.paste(tile, (left + i * (side + gap), r * (side + gap)))
    canvas.save(path)


def report(result: dict[str, Any]) -> str:
    lines = [
        "# Few calls on Fashion-MNIST", "",
        f"A U-Net of {result['steps']:,} training steps, guidance {result['guidance']:g}; {result['seeds']} seeds of "
        f"{result['pictures']} pictures, 95 % intervals of the mean; the classifier is right about "
        f"{result['classifier']:.1f} % of the test set. FID's pictures are drawn in {result['passes']}. "
        "RMSE and spread are to the teacher's 72 calls, on pairs that nothing was fitted to or "
        "chosen on. Seconds are of fitting.", "",
        "| calls | sampler | RMSE | spread | FID | KID x 1000 | class right, % | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in result["rows"]:
        fid, kid, right = (f"{row[k]['mean']:.2f} ± {row[k]['half']:.2f}" for k in ("fid", "kid", "right"))
        rmse = "" if row["rmse"] is None else f"{row['rmse']:.4f}"
        spread_of = "" if row["spread"] is None else f"{row['spread']:.2f}"
        seconds = f"{row['seconds']:.0f}" if row["seconds"] else ""
        lines.append(f"| {row['calls']} | {row['name']} | {rmse} | {spread_of} | {fid} | {kid} | {right} | {seconds} |")
    return "\n".join(lines)


def read_kept(path: Path, told: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of earlier results, which must have been made as is told now."""
    before = json.loads(path.read_text())
    other = [name for name in told if before.get(name) != told[name]]
    if other:
        raise SystemExit(f"--keep: {path} has another value of {', '.join(other)}")
    return before["rows"]


def merged(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of both, by calls and in the order of methods; rows made anew take the place of their like."""
    rows = {(row["calls"], row["name"]): row for row in [*before, *now]}
    last = max(row["calls"] for row in rows.values())  # the teacher stands first
    return sorted(rows.values(), key=lambda row: row["calls"] % last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the pictures")
    parser.add_argument("model", type=Path, help="folder of the networks")
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--calls", type=int, nargs="+", default=[4, 5, 6, 8, 10])
    parser.add_argument("--pictures", type=int, default=1000, help="of each seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--gradient-steps", type=int, default=60, help="of what is fitted by gradients")
    parser.add_argument("--name", default="fashion", help="of the results")
    parser.add_argument("--only", default="", metavar="WORD", help="methods with this in their names")
    parser.add_argument("--keep", action="store_true", help="keep what the results have of other methods and counts")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    diffusers.logging.set_verbosity_error()
    torch.set_grad_enabled(False)

    from sd_ext.reading import read_json

    seen = read_json(options.model / "classifier.json", dict[str, int])
    told = {
        "guidance": options.guidance, "pictures": options.pictures, "seeds": options.seeds,
        "steps": trained_steps(options.model), "passes": "bf16" if BF16 else "float32",
        "classifier": 100 * seen["right"] / seen["of"],
    }  # fmt: skip
    kept = read_kept(RESULTS / f"{options.name}.json", told) if options.keep else []
    problem, judge = Fashion(load_unet(options.model).requires_grad_(False)), Judge(options.data, options.model)
    table = table_of(SD)
    teacher = teach(problem, SETS, options.guidance, table)
    fitting = Fitting(problem, SETS, options.guidance, 2, teacher, SD)
    judged, rows, shown = SETS.for_judgement, [], []
    few = judged[:20]

    def add(calls: int, method: Method, of_teacher: bool = False) -> None:
        found = judge.measure(method.draw, options.pictures, options.seeds)
        x = fitting.goal(judged) if of_teacher else method.draw(judged)
        error = None if of_teacher else float((x - fitting.goal(judged)).square().mean().sqrt())
        wide = None if of_teacher else spread(x, fitting.goal(judged))
        rows.append(
            {"calls": calls, "name": method.name, "rmse": error, "spread": wide, "seconds": method.seconds, **found}
        )
        if calls in (options.calls[0], options.calls[1 % len(options.calls)], table.calls):
            shown.append((f"{method.name}, {calls}", x[: len(few)]))

    add(table.calls, Method("teacher", lambda pairs: end(fitting.on(pairs), table)), of_teacher=True)
    for calls in options.calls:
        made = methods(problem, fitting, calls, options.gradient_steps, only=options.only)
        if not made:
            raise SystemExit(f"--only {options.only}: no method has this in its name")
        for method in track(made, f"{calls} calls"):
            add(calls, method)
    result = {**told, "rows": merged(kept, rows)}
    if options.keep:
        print(f"{options.name}.png stays as it was: of what is measured anew it has no picture")
    else:
        sheet(shown, RESULTS / f"{options.name}.png")
    write(options.name, result, report(result))


if __name__ == "__main__":
    main()
