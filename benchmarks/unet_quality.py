"""What do the U-Net's variants cost in quality, and what do they save?

    python benchmarks/unet_quality.py [--data FOLDER] [--captions 300] [--steps 20] [--guidance 1.5]

On the embedded model: pictures for training captions, the same seeds with every variant. Distance to the exact
pictures (root mean square, of 255), the retrieval bar of bars.py (is the caption's own glyph the nearest of all
glyphs), the time of all pictures beside the plain U-Net's, and the share of its floating-point operations. A plot shows
speed against both.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import RESULTS, write
from bars import Descriptions, generate, ranks, shares
from torch.utils.flop_counter import FlopCounterMode

import sd_ext
from sd_ext.training.data import Pictures
from sd_ext.training.glyphs import write_imagefolder
from sd_ext.unets.presets import preset_options

VARIANTS: dict[str, dict[str, Any] | str] = {
    "exact": "exact", "balanced": "balanced", "fast": "fast",
    "cache N=2, depth 0, layer 0": {"cache_interval": 2, "cache_depth": 0, "cache_layer": 0},
    "cache N=3, depth 0, layer 0": {"cache_interval": 3, "cache_depth": 0, "cache_layer": 0},
    "cache N=2, depth 0, layer 1": {"cache_interval": 2, "cache_depth": 0, "cache_layer": 1},
    "cache N=2, front-loaded": {"cache_interval": 2, "cache_schedule": "front-loaded"},
    "cache N=3, front-loaded": {"cache_interval": 3, "cache_schedule": "front-loaded"},
    "attention gate at 10": {"attention_gate": 10},
    "tokens merged by a quarter": {"token_merge_ratio": 0.25},
    "tokens merged by half": {"token_merge_ratio": 0.5},
}  # fmt: skip


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


def measure(pipe: Any, captions: list[str], given: argparse.Namespace, size: int) -> tuple[np.ndarray, float, int]:
    """(pictures, seconds, operations)."""
    flops = operations(pipe, captions[0], given.steps, given.guidance, size)
    started = time.perf_counter()
    pictures = generate(pipe, captions, list(range(len(captions))), given.steps, given.guidance, size)
    return pictures, time.perf_counter() - started, flops


def plot(rows: dict[str, dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    labels = {"distance": "distance to the exact pictures (RMS, of 255)", "top_1": "own glyph nearest, %"}
    for axes, (key, label) in zip(figure.subplots(1, 2), labels.items(), strict=True):
        for number, (name, row) in enumerate(rows.items()):
            value = 100 * row[key] if key == "top_1" else row[key]
            axes.plot(row["speedup"], value, "os^D"[number // 10 % 4], color=f"C{number % 10}", label=name)
        axes.set(xlabel="times as fast as the plain U-Net (whole pipeline)", ylabel=label)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--captions", type=int, default=300)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        data = given.data or Path(work) / "glyphs"
        if not given.data:
            write_imagefolder(data)
        run(given, data)


def run(given: argparse.Namespace, data: Path) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(sd_ext.pretrained_path())
    pipe.set_progress_bar_config(disable=True)
    size = pipe.vae.config.sample_size
    glyphs = Pictures(data, size, "train")
    known = Descriptions(np.stack([((glyphs.pixels(i) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
                                   for i in range(len(glyphs))]))  # fmt: skip
    own = np.linspace(0, len(glyphs) - 1, given.captions).astype(int)
    captions = [glyphs.captions[i] for i in own]
    plain, rows, exact = pipe.unet, {}, None
    generate(pipe, captions[:8], list(range(8)), 2, given.guidance, size)  # warm
    whole: tuple[float, int] | None = None
    for name, options in VARIANTS.items():
        if isinstance(options, str):
            options = preset_options(options, plain)
        pipe.unet = sd_ext.VariantUNet2DConditionModel.from_unet(plain, **options)
        pictures, seconds, flops = measure(pipe, captions, given, size)
        whole = whole or (seconds, flops)
        exact = pictures if exact is None else exact
        error = (pictures.astype(np.float32) - exact.astype(np.float32)) ** 2
        rows[name] = {
            "seconds": seconds, "speedup": whole[0] / seconds, "flops": flops / whole[1],
            "distance": float(np.sqrt(error.mean((1, 2, 3))).mean()),
            **shares(ranks(known.to(pictures)["features"], own)),
        }  # fmt: skip
        print(name, rows[name], flush=True)
    lines = [
        "| U-Net | times as fast | operations | distance | own glyph nearest | among five |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['speedup']:.2f} | {row['flops']:.0%} | {row['distance']:.1f} | {row['top_1']:.1%} | "
            f"{row['top_5']:.1%} |"
        )
    plot(rows, RESULTS / "unet_quality.png")
    title = f"# U-Net variants on the embedded model: {given.captions} captions, {given.steps} calls"
    text = "\n".join([title, "", *lines])
    write("unet_quality", {"settings": {k: str(v) for k, v in vars(given).items()}, "results": rows}, text)


if __name__ == "__main__":
    main()
