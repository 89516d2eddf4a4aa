"""What latent space buys: the cost of a step in pixel space beside latent space, by the same U-Net.

    python benchmarks/pixel_vs_latent.py [--model FOLDER] [--repeats 5]

The U-Net is the embedded model's, once as it is, on latents, and once with 3 input and output channels, on pixels: the
same blocks and widths, all but equal numbers of weights. A training step is forward, backward and AdamW; a sampling
step is one forward pass with guidance (two per picture). bf16 passes for training as in the recipe, float32 for
sampling as in the pipeline. What latent space costs besides is measured too: encoding a picture once for training,
decoding it once after sampling.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from _report import write

import sd_ext
from sd_ext.training.quick.group_norm import quicken

SIZES = {"latent": 32, "pixel": 4}  # pictures at a time: enough to fill the cores, few enough to fit


def seconds(action: Callable[[], Any], repeats: int) -> float:
    """Median time of an action after one warm-up."""
    action()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def train_step(unet: Any, batch: int, channels: int, side: int, width: int) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, fused=True)
    x = torch.randn(batch, channels, side, side).to(memory_format=torch.channels_last)
    t, states = torch.randint(0, 1000, (batch,)), torch.randn(batch, 16, width)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            y = unet(x, t, states).sample
        (y.float() - x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def sample_step(unet: Any, batch: int, channels: int, side: int, width: int) -> Callable[[], None]:
    x = torch.randn(2 * batch, channels, side, side).to(memory_format=torch.channels_last)
    states = torch.randn(2 * batch, 16, width)

    @torch.no_grad()
    def step() -> None:
        unet(x, 500, states)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="pipeline folder [the embedded model]")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()

    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder = options.model or sd_ext.pretrained_path()
    vae: Any = AutoencoderKL.from_pretrained(folder, subfolder="vae", local_files_only=True)
    config = UNet2DConditionModel.load_config(folder, subfolder="unet", local_files_only=True)
    pixels = vae.config.sample_size
    spaces = {
        "latent": (config["in_channels"], config["sample_size"], config),
        "pixel": (3, pixels, {**config, "in_channels": 3, "out_channels": 3, "sample_size": pixels}),
    }
    result: dict[str, Any] = {"picture": pixels, "repeats": options.repeats}
    for space, (channels, side, settings) in spaces.items():
        torch.manual_seed(0)
        unet: Any = UNet2DConditionModel.from_config(settings)
        unet.to(memory_format=torch.channels_last)
        shape = (SIZES[space], channels, side, config["cross_attention_dim"])
        sampling = seconds(sample_step(unet.eval(), *shape), options.repeats)
        training = seconds(train_step(quicken(unet.train()), *shape), options.repeats)
        result[space] = {
            "shape": [channels, side, side],
            "parameters": sum(p.numel() for p in unet.parameters()),
            "training_step_seconds_per_picture": training / SIZES[space],
            "sampling_step_seconds_per_picture": sampling / SIZES[space],
        }
    with torch.no_grad():
        picture, latent = torch.randn(32, 3, pixels, pixels), torch.randn(32, *result["latent"]["shape"])
        result["encode_seconds_per_picture"] = seconds(lambda: vae.encode(picture), options.repeats) / 32
        result["decode_seconds_per_picture"] = seconds(lambda: vae.decode(latent), options.repeats) / 32
    write("pixel_vs_latent", result, report(result))


def report(r: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        "# What latent space buys",
        "",
        f"{r['picture']} x {r['picture']} pictures, the same U-Net in both spaces; milliseconds per picture.",
        "",
        "| | pixel space | latent space | ratio |",
        "|---|---|---|---|",
        f"| shape | {r['pixel']['shape']} | {r['latent']['shape']} | |",
        f"| parameters | {r['pixel']['parameters'] / 1e6:.2f} M | {r['latent']['parameters'] / 1e6:.2f} M | |",
    ]
    for name in ("training", "sampling"):
        pixel, latent = (1e3 * r[s][f"{name}_step_seconds_per_picture"] for s in ("pixel", "latent"))
        lines.append(f"| one {name} step | {pixel:.1f} | {latent:.2f} | {pixel / latent:.0f} x |")
    pixel = 20e3 * r["pixel"]["sampling_step_seconds_per_picture"]
    decode = 1e3 * r["decode_seconds_per_picture"]
    latent = 20e3 * r["latent"]["sampling_step_seconds_per_picture"] + decode
    lines += [
        f"| 20 sampling steps, and decoding | {pixel:.0f} | {latent:.0f} | {pixel / latent:.0f} x |",
        "",
        f"Encoding a picture, once for all of training, takes {1e3 * r['encode_seconds_per_picture']:.1f} ms; decoding "
        f"one {decode:.1f} ms.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
