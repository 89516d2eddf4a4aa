"""What do the U-Net's variants cost in quality, and what do they save?

    python benchmarks/unet_quality.py [--data FOLDER] [--captions 300] [--seeds 25] [--steps 20] [--guidance 1.5]

On the embedded model, with the same seeds for every variant:
- training captions: distance to the exact pictures (root mean square, of 255), and the retrieval bar of bars.py (is the
  caption's own glyph the nearest of all glyphs);
- held-out captions, where the exact model is often wrong itself: the same, and whether colour and shape are right;
- speed: a batch of pictures through the whole pipeline, in turns with the plain U-Net, the median of the ratios; and
  the U-Net's share of its floating-point operations;
- pictures of twice the training size, by the plain U-Net and by the one for large pictures, made smaller again and
  looked up in the same way.

A plot shows speed against quality, two sheets the pictures.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import RESULTS, write
from bars import SHOWN, Descriptions, colour_and_shape, generate, ranks, shares, sheet
from torch.utils.flop_counter import FlopCounterMode

import sd_ext
from sd_ext.training.data.images import to_uint8
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.data.sources import read_items
from sd_ext.training.sets.glyphs import write_imagefolder
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


def operations(pipe: Any, caption: str, steps: int, guidance: float, size: int) -> int:
    """Floating-point operations of the U-Net for one picture."""
    total = 0
    unet, real = pipe.unet, pipe.unet.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal total
        with FlopCounterMode(display=False) as counter:
            result = real(*args, **kwargs)
        total += counter.get_total_flops()
        return result

    unet.forward = counted
    try:
        pipe([caption], num_inference_steps=steps, guidance_scale=guidance, height=size, width=size,
             output_type="latent", generator=torch.Generator().manual_seed(0))  # fmt: skip
    finally:
        del unet.forward
    return total


def speedups(pipe: Any, unets: dict[str, Any], captions: list[str], given: argparse.Namespace, size: int) -> Any:
    """Median ratio of the first U-Net's time to each one's, whole pipeline, in turns."""
    taken: dict[str, list[float]] = {name: [] for name in unets}
    for turn in range(given.repeats + 1):
        for name, unet in unets.items():
            pipe.unet = unet
            started = time.perf_counter()
            generate(pipe, captions, list(range(len(captions))), given.steps if turn else 2, given.guidance, size)
            if turn:
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


class Glyphs:
    """The glyph set: pictures, captions, and where each caption's own glyph is."""

    def __init__(self, data: Path, size: int, given: argparse.Namespace):
        pictures = Pictures(data, size)
        glyphs = to_uint8(torch.stack([pictures.pixels(i) for i in range(len(pictures))]))
        self.named = dict(zip(pictures.captions, glyphs, strict=True))
        self.place = {caption: i for i, caption in enumerate(pictures.captions)}
        self.known = Descriptions(glyphs)
        training = [item.caption for item in read_items(data, "train")]
        self.training = [training[i] for i in np.linspace(0, len(training) - 1, given.captions).astype(int)]
        self.held_out = [item.caption for item in read_items(data, "held_out") for _ in range(given.seeds)]

    def nearest(self, pictures: np.ndarray, captions: list[str]) -> dict[str, float]:
        own = np.array([self.place[caption] for caption in captions])
        return shares(ranks(self.known.to(pictures)["features"], own))

    def right(self, pictures: np.ndarray) -> float:
        """Share of held-out pictures whose colour and shape are those of the caption."""
        seen = colour_and_shape(pictures, self.named)
        return float(np.mean([" ".join(pair) == c for pair, c in zip(seen, self.held_out, strict=True)]))


def compare(pipe: Any, plain: Any, glyphs: Glyphs, given: argparse.Namespace, size: int) -> tuple[Any, Any]:
    """(rows, pictures of the shown captions) of every variant."""
    unets = {name: variant(plain, options) for name, options in VARIANTS.items()}
    rows = speedups(pipe, unets, glyphs.training[:BATCH], given, size)
    shown: dict[str, list[np.ndarray]] = {}
    exact: Any = None
    for name, unet in unets.items():
        pipe.unet = unet
        flops = operations(pipe, glyphs.training[0], given.steps, given.guidance, size)
        seeds = list(range(len(glyphs.training)))
        known = generate(pipe, glyphs.training, seeds, given.steps, given.guidance, size)
        seeds = [i % given.seeds for i in range(len(glyphs.held_out))]
        new = generate(pipe, glyphs.held_out, seeds, given.steps, given.guidance, size)
        exact = exact or (known, new, flops)
        rows[name] |= {
            "options": unet.describe(), "flops": flops / exact[2], "distance": distance(known, exact[0]),
            "training": glyphs.nearest(known, glyphs.training),
            "held_out": {**glyphs.nearest(new, glyphs.held_out), "right": glyphs.right(new),
                         "distance": distance(new, exact[1])},
        }  # fmt: skip
        captions = [c for c in SHOWN if c in glyphs.place][:12]
        shown[name] = list(generate(pipe, captions, list(range(12)), given.steps, given.guidance, size))
        print(name, rows[name], flush=True)
    return rows, shown


def large(pipe: Any, plain: Any, glyphs: Glyphs, given: argparse.Namespace, size: int) -> tuple[Any, Any]:
    """The same for pictures of twice the size, fewer of them."""
    captions = glyphs.training[:: max(1, len(glyphs.training) // 96)][:96]
    unets = {name: variant(plain, options) for name, options in LARGE.items()}
    rows = speedups(pipe, unets, captions[:8], given, 2 * size)
    shown: dict[str, list[np.ndarray]] = {}
    for name, unet in unets.items():
        pipe.unet = unet
        pictures = generate(pipe, captions, list(range(len(captions))), given.steps, given.guidance, 2 * size)
        halved = pictures.reshape(len(pictures), size, 2, size, 2, 3).mean((2, 4)).round().astype(np.uint8)
        rows[name] |= {"options": unet.describe(), "training": glyphs.nearest(halved, captions)}
        some = [c for c in SHOWN if c in glyphs.place][:12]
        shown[name] = list(generate(pipe, some, list(range(12)), given.steps, given.guidance, 2 * size))
        print(name, rows[name], flush=True)
    return rows, shown


def plot(rows: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.4), layout="constrained")
    panels = {
        "distance to the exact pictures (RMS, of 255)": lambda row: row["distance"],
        "training captions: own glyph nearest, %": lambda row: 100 * row["training"]["top_1"],
        "held-out captions: colour and shape right, %": lambda row: 100 * row["held_out"]["right"],
    }
    for axes, (label, value) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for number, (name, row) in enumerate(rows.items()):
            mark, colour = "os^D"[number // 10], f"C{number % 10}"
            axes.plot(row["speedup"], value(row), mark, color=colour, label=name)
        axes.set(xlabel="times as fast as the plain U-Net (whole pipeline)", ylabel=label)
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylim(bottom=-0.3)
    for axes in figure.axes[1:]:
        axes.set_ylim(50, 101)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.savefig(path, dpi=110)


def report(rows: dict[str, Any], larger: dict[str, Any], given: argparse.Namespace) -> str:
    lines = [
        f"# U-Net variants on the embedded model: {given.steps} calls, guidance {given.guidance:g}",
        "",
        f"{given.captions} training captions, 12 held-out captions with {given.seeds} seeds each.",
        "",
        "| U-Net | options | times as fast | operations | distance | own glyph nearest | held out: nearest "
        "| held out: colour and shape right |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['options']} | {row['speedup']:.2f} | {row['flops']:.0%} | {row['distance']:.1f} | "
            f"{row['training']['top_1']:.1%} | {row['held_out']['top_1']:.1%} | {row['held_out']['right']:.1%} |"
        )
    lines += [
        "",
        "Pictures of twice the training size, made smaller and looked up:",
        "",
        "| U-Net | options | times as fast | own glyph nearest | among five |",
        "|---|---|---|---|---|",
    ]
    for name, row in larger.items():
        lines.append(
            f"| {name} | {row['options']} | {row['speedup']:.2f} | {row['training']['top_1']:.1%} | "
            f"{row['training']['top_5']:.1%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--captions", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=25, help="for each held-out caption")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--repeats", type=int, default=3, help="of the timings")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        data = given.data or Path(work) / "glyphs"
        if not given.data:
            write_imagefolder(data)
        run(given, data)


def run(given: argparse.Namespace, data: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe: Any = StableDiffusionPipeline.from_pretrained(sd_ext.pretrained_path())
    pipe.set_progress_bar_config(disable=True)
    size, plain = pipe.vae.config.sample_size, pipe.unet
    glyphs = Glyphs(data, size, given)
    rows, shown = compare(pipe, plain, glyphs, given, size)
    larger, shown_larger = large(pipe, plain, glyphs, given, size)
    plot(rows, RESULTS / "unet_quality.png")
    captions = [c for c in SHOWN if c in glyphs.place][:12]
    sheet(list(shown.items()), captions, left=200).save(RESULTS / "unet_quality_grid.png")
    sheet(list(shown_larger.items()), captions, left=200).save(RESULTS / "unet_quality_large.png")
    results = {"settings": {k: str(v) for k, v in vars(given).items()}, "results": rows, "large": larger}
    write("unet_quality", results, report(rows, larger, given))


if __name__ == "__main__":
    main()
