"""How long is the command on its way to a first picture, from a folder and from a single file; and how many pictures a
second does it draw?

    python benchmarks/generate_speed.py [--runs 3] [--pictures 64]

First picture: a model of the size of Stable Diffusion 1.5 with random float16 weights, once as a pipeline folder and
once as one `.safetensors` file in the original layout, on the CPU in bfloat16; one network call at 64 x 64 pixels, so
that what is timed is the start: imports, reading, conversion. In turns; the first turn fills the disk's cache and does
not count.

Pictures a second: the embedded model, 20 calls: one at a time, four at a time, and two processes, which share the
cores.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _report import write

THREADS = str(os.cpu_count() or 1)


def command(*arguments: object, processes: int = 1) -> float:
    """Run `sd-ext` in this many processes; returns the seconds until the last is done."""
    started, children = time.perf_counter(), []
    for number in range(processes):
        places = {"RANK": number, "WORLD_SIZE": processes, "LOCAL_RANK": number} if processes > 1 else {}
        threads = max(1, int(THREADS) // processes)
        told = {**os.environ, "OMP_NUM_THREADS": str(threads), **{name: str(value) for name, value in places.items()}}
        line = [sys.executable, "-m", "sd_ext.cli", *map(str, arguments)]
        children.append(subprocess.Popen(line, env=told, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))
    for child in children:
        _, said = child.communicate()
        if child.returncode:
            sys.exit(said.decode())
    return time.perf_counter() - started


def make_model(folder: Path) -> None:
    """A pipeline folder of Stable Diffusion 1.5's size with random weights in float16."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from sd_ext.models.original.tokenizer import make_tokenizer

    def filled(model: Any) -> Any:
        model = model.to_empty(device="cpu").to(torch.float16).eval()
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_(std=0.02)
        return model

    with torch.device("meta"):
        unet: Any = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512,
        )  # fmt: skip
        text = CLIPTextModel(
            CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        )
    unet, vae, text = filled(unet), filled(vae), filled(text)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
    pipe: Any = StableDiffusionPipeline(
        vae,
        text,
        make_tokenizer("clip"),
        unet,
        scheduler,
        None,
        None,
        requires_safety_checker=False,  # type: ignore[arg-type]
    )
    pipe.save_pretrained(folder)


def first_picture(runs: int, work: Path) -> dict[str, Any]:
    folder, file = work / "folder", work / "model.safetensors"
    make_model(folder)
    command("convert", "checkpoint", folder, file)
    seconds: dict[str, list[float]] = {"folder": [], "single file": []}
    for turn in range(runs + 1):
        for name, model in (("folder", folder), ("single file", file)):
            taken = command("generate", "a", "--model", model, "--steps", 1, "--size", "64x64", "--guidance", 1,
                            "--dtype", "bf16", "--out", work / "pictures")  # fmt: skip
            if turn:
                seconds[name].append(taken)
    return {"megabytes": file.stat().st_size / 1e6, **{n: statistics.median(s) for n, s in seconds.items()}}


def rates(runs: int, pictures: int, work: Path) -> dict[str, float]:
    """Pictures a second, start included, of each way."""
    ways = {"one at a time": (1, 1), "four at a time": (4, 1), "two processes": (1, 2)}
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(runs):
        for name, (batch, processes) in ways.items():
            out = work / f"{turn} {name}"
            taken[name].append(
                command("generate", "red apple", "--num", pictures, "--batch", batch, "--manifest", "--out", out,
                        processes=processes)
            )  # fmt: skip
    return {name: pictures / statistics.median(seconds) for name, seconds in taken.items()}


def report(result: dict[str, Any]) -> str:
    first, rate, of = result["first_picture"], result["pictures_a_second"], result["pictures"]
    plain = rate["one at a time"]
    lines = [
        f"SD 1.5's size, {first['megabytes']:,.0f} MB in float16, random weights; seconds to a first picture of one "
        f"call, median of {result['runs']}:",
        "", "| from | seconds |", "|---|---:|",
        *(f"| {name} | {first[name]:.1f} |" for name in ("folder", "single file")),
        "", f"The embedded model, 20 calls, {of} pictures, start included:",
        "", "| | pictures a second | ratio |", "|---|---:|---:|",
        *(f"| {name} | {value:.2f} | {value / plain:.2f} |" for name, value in rate.items()),
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=64)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        result = {
            "runs": options.runs, "pictures": options.pictures,
            "first_picture": first_picture(options.runs, Path(work)),
            "pictures_a_second": rates(options.runs, options.pictures, Path(work)),
            "peak_memory_of_this_script_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        }  # fmt: skip
    write("generate_speed", result, report(result))


if __name__ == "__main__":
    main()
