"""What do the U-Net's variants cost in quality, and what do they save?

    python benchmarks/unet_quality.py --data SET [--scorer FOLDER] [--steps 20] [--guidance G]

On the embedded model, with the same seeds for every variant; SET and the judge are those of `bars.py`, and so are the
questions:
- 100 things: distance to the exact pictures (root mean square, of 255), and whether the judge sees the thing;
- colours of things that never met: the same, and whether the colour is right;
- speed: a batch of pictures through the whole pipeline, in turns with the plain U-Net, the median of the ratios; and
  the U-Net's share of its floating-point operations;
- the honest alternative, which needs no variant: fewer calls of the sampler. Of every variant it is said with which
  share of the operations fewer calls have the same distance;
- pictures of twice the training size, by the plain U-Net and by the one for large pictures, made smaller again and
  judged in the same way.

A plot shows speed against quality, two sheets the pictures.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import RESULTS, write
from bars import HERE, SHOWN, Asked, Model, Questions, hits, sheet
from bars import share as shared
from scorer import Scorer, load_scorer
from torch.utils.flop_counter import FlopCounterMode

import sd_ext
from sd_ext.reading import read_json
from sd_ext.training.sets.drawings.book import read_book
from sd_ext.unets.presets import preset_options

VARIANTS: dict[str, dict[str, Any] | str] = {
    "exact": "exact", "balanced": "balanced", "fast": "fast",
    "cache N=5": {"cache_interval": 5},
    "cache N=2, one layer deeper": {"cache_interval": 2, "cache_layer": 1},
    "cache N=2, front-loaded": {"cache_interval": 2, "cache_schedule": "front-loaded"},
    "cache N=3, front-loaded": {"cache_interval": 3, "cache_schedule": "front-loaded"},
    "cache by threshold 0.2": {"cache_schedule": "threshold", "cache_threshold": 0.2},
    "attention gate at 10": {"attention_gate": 10},
    "cache N=3, gate at 10": {"cache_interval": 3, "attention_gate": 10},
    "calls left out, 0.1": {"skip_threshold": 0.1},
    "calls left out, 0.2": {"skip_threshold": 0.2},
    "tokens merged by a quarter": {"token_merge_ratio": 0.25},
    "tokens merged by half": {"token_merge_ratio": 0.5},
    "keys and values thinned by 2": {"token_kv_stride": 2},
    "tiles of 4": {"tile_size": 4},
}  # fmt: skip
LARGE: dict[str, dict[str, Any] | str] = {
    "exact": "exact",
    "highres": "highres",
    "shrunk in 40% of the steps": {"highres_factor": "auto", "highres_until": 0.4},
    "shrunk in all steps": {"highres_factor": "auto", "highres_until": 1.0},
}
FEWER = (16, 13, 10, 8, 6)
"""Calls of the plain U-Net, beside which the variants stand."""
BATCH = 16


def variant(plain: Any, options: dict[str, Any] | str) -> Any:
    if isinstance(options, str):
        options = preset_options(options)
    return sd_ext.VariantUNet2DConditionModel.from_unet(plain, **options)


def operations(model: Model, caption: str, size: int) -> int:
    """Floating-point operations of the U-Net for one picture."""
    total = 0
    unet, real = model.pipe.unet, model.pipe.unet.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal total
        with FlopCounterMode(display=False) as counter:
            result = real(*args, **kwargs)
        total += counter.get_total_flops()
        return result

    unet.forward = counted
    try:
        model.pipe([caption], num_inference_steps=model.steps, guidance_scale=model.guidance, height=size, width=size,
                   output_type="latent", generator=torch.Generator().manual_seed(0))  # fmt: skip
    finally:
        del unet.forward
    return total


@dataclass(frozen=True)
class Way:
    """A U-Net, and how often it is called for a picture."""

    unet: Any
    steps: int


def speedups(model: Model, ways: dict[str, Way], captions: list[str], repeats: int) -> Any:
    """Median ratio of the first way's time to each one's, whole pipeline, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            model.pipe.unet, model.steps = way.unet, way.steps
            started = time.perf_counter()
            model.draw(captions, list(range(len(captions))))
            if turn:  # the first turn warms up
                taken[name].append(time.perf_counter() - started)
    first = next(iter(taken.values()))
    return {
        name: {
            "seconds": statistics.median(times),
            "speedup": statistics.median(a / b for a, b in zip(first, times, strict=True)),
        }
        for name, times in taken.items()
    }


def distance(pictures: np.ndarray, exact: np.ndarray) -> float:
    """Root mean square of each picture's difference, averaged; of 255."""
    error = (pictures.astype(np.float32) - exact.astype(np.float32)) ** 2
    return float(np.sqrt(error.mean((1, 2, 3))).mean())


@dataclass
class Given:
    """What every variant is asked, and who judges it."""

    model: Model
    scorer: Scorer
    things: list[Asked]
    pairs: list[Asked]
    repeats: int
    judge: Path

    def draw(self, asked: list[Asked], title: str) -> np.ndarray:
        return self.model.draw([a.caption for a in asked], [a.seed for a in asked], title)

    def right(self, pictures: np.ndarray, asked: list[Asked], head: str = "concept") -> dict[str, Any]:
        return shared(hits(self.scorer, pictures, asked)[head])


def compare(given: Given, plain: Any) -> tuple[Any, Any]:
    """(rows, pictures of the shown captions) of every variant, and of fewer calls."""
    model, steps = given.model, given.model.steps
    ways = {name: Way(variant(plain, options), steps) for name, options in VARIANTS.items()}
    ways |= {f"{calls} calls": Way(plain, calls) for calls in FEWER if calls < steps}
    rows = speedups(model, ways, [a.caption for a in given.things[:BATCH]], given.repeats)
    shown: dict[str, list[np.ndarray]] = {}
    exact: Any = None
    for name, way in ways.items():
        model.pipe.unet, model.steps = way.unet, way.steps
        flops = operations(model, given.things[0].caption, model.size)
        things, pairs = given.draw(given.things, name), given.draw(given.pairs, name)
        exact = exact or (things, pairs, flops)
        rows[name] |= {
            "options": "plain" if way.unet is plain else way.unet.describe(), "calls": way.steps,
            "flops": flops / exact[2], "distance": distance(things, exact[0]),
            "things": given.right(things, given.things), "colours": given.right(pairs, given.pairs, "colour"),
            "pairs_distance": distance(pairs, exact[1]),
        }  # fmt: skip
        shown[name] = list(model.draw(SHOWN, [0] * len(SHOWN)))
        print(name, rows[name], flush=True)
    model.steps = steps
    for row in rows.values():
        row["fewer"] = of_fewer_calls(rows, row, steps)
    return rows, shown


def of_fewer_calls(rows: Any, row: Any, steps: int) -> float | None:
    """The share of the operations with which fewer calls have a row's distance; None where none of them has."""
    points = sorted((each["distance"], each["flops"]) for each in rows.values() if each["options"] == "plain")
    distances, shares = zip(*points, strict=True)
    if row["calls"] < steps or not 0 < row["distance"] <= distances[-1]:
        return None
    return float(np.interp(row["distance"], distances, shares))


def large(given: Given, plain: Any) -> tuple[Any, Any]:
    """The same for pictures of twice the size, fewer of them."""
    model, small = given.model, given.model.size
    ways = {name: Way(variant(plain, options), model.steps) for name, options in LARGE.items()}
    model.size = 2 * small
    rows = speedups(model, ways, [a.caption for a in given.things[:4]], given.repeats)
    shown: dict[str, list[np.ndarray]] = {}
    for name, way in ways.items():
        model.pipe.unet = way.unet
        some = given.things[:50]
        rows[name] |= {"options": way.unet.describe(), "things": given.right(given.draw(some, name), some)}
        shown[name] = list(model.draw(SHOWN, [0] * len(SHOWN)))
        print(name, rows[name], flush=True)
    model.size = small
    return rows, shown


def plot(rows: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    panels = {
        "distance to the exact pictures (RMS, of 255)": lambda row: row["distance"],
        "things: right by the judge, %": lambda row: row["things"]["percent"],
        "colours of things that never met: right, %": lambda row: row["colours"]["percent"],
    }
    plain = [row for row in rows.values() if row["options"] == "plain"]
    others = {name: row for name, row in rows.items() if row["options"] != "plain"}
    for axes, (label, value) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        counts = ", ".join(str(row["calls"]) for row in plain)
        axes.plot([row["speedup"] for row in plain], list(map(value, plain)), "k-x", label=f"plain, {counts} calls")
        for number, (name, row) in enumerate(others.items()):
            axes.plot(row["speedup"], value(row), "os^D"[number // 10], color=f"C{number % 10}", label=name)
        axes.set(xlabel="times as fast as the plain U-Net (whole pipeline)", ylabel=label)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylim(bottom=-0.3)
    for axes in figure.axes[1:]:
        axes.set_ylim(min(50, axes.get_ylim()[0]), 101)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=110)


def report(rows: dict[str, Any], larger: dict[str, Any], given: Given) -> str:
    def percent(each: dict[str, Any]) -> str:
        low, high = each["interval"]
        return f"{each['percent']:.1f} % ({low:.0f} to {high:.0f})"

    accuracy = read_json(given.judge / "scorer.json", dict[str, Any])["accuracy"]
    known = {head: accuracy[f"{head}, new drawings"]["percent"] for head in ("concept", "colour")}
    lines = [
        f"# U-Net variants on the embedded model: {given.model.steps} calls, guidance {given.model.guidance:g}",
        "",
        f"{len(given.things)} captions of things, {len(given.pairs)} of colours and things that never met; 95 % "
        "intervals. Distances are root mean squares, of 255. About real pictures of drawings that it never saw the "
        f"judge is right in {known['concept']:.0f} % (the thing) and {known['colour']:.0f} % (the colour). "
        "The column “fewer calls” is the share of the operations with which a sampler of fewer calls has the same "
        "distance.",
        "",
        "| U-Net | options | times as fast | operations | fewer calls | distance | the thing is right | the colour |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        fewer = "" if row["fewer"] is None else f"{row['fewer']:.0%}"
        lines.append(
            f"| {name} | {row['options']} | {row['speedup']:.2f} | {row['flops']:.0%} | {fewer} | "
            f"{row['distance']:.1f} | {percent(row['things'])} | {percent(row['colours'])} |"
        )
    lines += [
        "",
        "Pictures of twice the training size, made smaller and judged:",
        "",
        "| U-Net | options | times as fast | the thing is right |",
        "|---|---|---|---|",
    ]
    for name, row in larger.items():
        lines.append(f"| {name} | {row['options']} | {row['speedup']:.2f} | {percent(row['things'])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a set drawn by `sd-ext train data --packages`")
    parser.add_argument("--scorer", type=Path, default=HERE / "judge", help="folder of the judge")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=None, help="[the model's own]")
    parser.add_argument("--repeats", type=int, default=2, help="of the timings")
    options = parser.parse_args()
    folder = Path(sd_ext.pretrained_path())
    guidance = options.guidance or read_json(folder / "words.json", dict[str, Any])["guidance"]
    questions = Questions(read_book(options.data).drawings, few=False)
    things = questions.phrasing()["a X"]
    pairs = [asked for asked in questions.pairs() if asked.seed < 202]
    model = Model(str(folder), options.steps, guidance, bf16=False)  # what people draw in on a CPU
    given = Given(model, load_scorer(options.scorer), things, pairs, options.repeats, options.scorer)
    plain = model.pipe.unet
    rows, shown = compare(given, plain)
    larger, shown_larger = large(given, plain)
    plot(rows, RESULTS / "unet_quality.png")
    sheet(list(shown.items()), SHOWN, left=200).save(RESULTS / "unet_quality_grid.png")
    sheet(list(shown_larger.items()), SHOWN, left=200).save(RESULTS / "unet_quality_large.png")
    settings = {"steps": options.steps, "guidance": guidance, "repeats": options.repeats}
    write("unet_quality", {"settings": settings, "results": rows, "large": larger}, report(rows, larger, given))


if __name__ == "__main__":
    main()
