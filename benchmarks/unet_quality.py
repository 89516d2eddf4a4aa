"""What do the U-Net's variants cost in quality, and what do they save?

    python benchmarks/unet_quality.py --data SET [--scorer FOLDER] [--steps 20] [--guidance G]

On the embedded model, with the same seeds for every variant; SET and the judge are those of `bars.py`, and so are the
questions:
- 100 things in three forms: distance to the exact pictures (root mean square, of 255), and whether the judge sees the
  thing;
- colours of things that never met: the same, and whether colour and thing are both right;
- speed: a batch of pictures through the whole pipeline, in turns with the plain U-Net, the median of the ratios; and
  the U-Net's share of its floating-point operations;
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
    "tokens merged by a quarter": {"token_merge_ratio": 0.25},
    "tokens merged by half": "tokens",
    "keys and values thinned by 2": {"token_kv_stride": 2},
    "tiles of 4": {"tile_size": 4},
}  # fmt: skip
LARGE: dict[str, dict[str, Any] | str] = {
    "exact": "exact",
    "highres": "highres",
    "shrunk in 40% of the steps": {"highres_factor": "auto", "highres_until": 0.4},
    "shrunk in all steps": {"highres_factor": "auto", "highres_until": 1.0},
}
BATCH = 32


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


def speedups(model: Model, unets: dict[str, Any], captions: list[str], repeats: int) -> Any:
    """Median ratio of the first U-Net's time to each one's, whole pipeline, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in unets}
    for turn in range(repeats + 1):
        for name, unet in unets.items():
            model.pipe.unet = unet
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

    def draw(self, asked: list[Asked], title: str) -> np.ndarray:
        return self.model.draw([a.caption for a in asked], [a.seed for a in asked], title)

    def right(self, pictures: np.ndarray, asked: list[Asked]) -> dict[str, Any]:
        return shared(hits(self.scorer, pictures, asked)["all"])


def compare(given: Given, plain: Any) -> tuple[Any, Any]:
    """(rows, pictures of the shown captions) of every variant."""
    model, unets = given.model, {name: variant(plain, options) for name, options in VARIANTS.items()}
    rows = speedups(model, unets, [a.caption for a in given.things[:BATCH]], given.repeats)
    shown: dict[str, list[np.ndarray]] = {}
    exact: Any = None
    for name, unet in unets.items():
        model.pipe.unet = unet
        flops = operations(model, given.things[0].caption, model.size)
        things, pairs = given.draw(given.things, name), given.draw(given.pairs, name)
        exact = exact or (things, pairs, flops)
        rows[name] |= {
            "options": unet.describe(), "flops": flops / exact[2], "distance": distance(things, exact[0]),
            "things": given.right(things, given.things), "pairs": given.right(pairs, given.pairs),
            "pairs_distance": distance(pairs, exact[1]),
        }  # fmt: skip
        shown[name] = list(model.draw(SHOWN, [0] * len(SHOWN)))
        print(name, rows[name], flush=True)
    return rows, shown


def large(given: Given, plain: Any) -> tuple[Any, Any]:
    """The same for pictures of twice the size, fewer of them."""
    model, small = given.model, given.model.size
    unets = {name: variant(plain, options) for name, options in LARGE.items()}
    model.size = 2 * small
    rows = speedups(model, unets, [a.caption for a in given.things[:8]], given.repeats)
    shown: dict[str, list[np.ndarray]] = {}
    for name, unet in unets.items():
        model.pipe.unet = unet
        rows[name] |= {
            "options": unet.describe(), "things": given.right(given.draw(given.things[:100], name), given.things[:100])
        }  # fmt: skip
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
        "colours of things that never met: both right, %": lambda row: row["pairs"]["percent"],
    }
    for axes, (label, value) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for number, (name, row) in enumerate(rows.items()):
            mark, colour = "os^D"[number // 10], f"C{number % 10}"
            axes.plot(row["speedup"], value(row), mark, color=colour, label=name)
        axes.set(xlabel="times as fast as the plain U-Net (whole pipeline)", ylabel=label)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylim(bottom=-0.3)
    for axes in figure.axes[1:]:
        axes.set_ylim(0, 101)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=110)


def report(rows: dict[str, Any], larger: dict[str, Any], given: Given) -> str:
    def percent(each: dict[str, Any]) -> str:
        low, high = each["interval"]
        return f"{each['percent']:.1f} % ({low:.0f} to {high:.0f})"

    lines = [
        f"# U-Net variants on the embedded model: {given.model.steps} calls, guidance {given.model.guidance:g}",
        "",
        f"{len(given.things)} captions of things, {len(given.pairs)} of colours and things that never met; 95 % "
        "intervals.",
        "",
        "| U-Net | options | times as fast | operations | distance | the thing is right | never met: both right |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['options']} | {row['speedup']:.2f} | {row['flops']:.0%} | {row['distance']:.1f} | "
            f"{percent(row['things'])} | {percent(row['pairs'])} |"
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
    parser.add_argument("--repeats", type=int, default=3, help="of the timings")
    options = parser.parse_args()
    folder = Path(sd_ext.pretrained_path())
    guidance = options.guidance or read_json(folder / "words.json", dict[str, Any])["guidance"]
    questions = Questions(read_book(options.data).drawings, few=False)
    forms = questions.phrasing()
    things = [*forms["a X"], *forms["a photo of a X"], *forms["X"]]
    model = Model(str(folder), options.steps, guidance, bf16=False)  # what people draw in on a CPU
    given = Given(model, load_scorer(options.scorer), things, questions.pairs(), options.repeats)
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
