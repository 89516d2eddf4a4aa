"""Does a LoRA of sixty line drawings make the embedded model draw lines?

    python benchmarks/lora_style.py

Runs `sd-ext train lora embedded` on line drawings of Symbola, as its preset is, then draws captions that are not among
them at strengths 0, 0.5 and 1. Colour is the mean distance of a pixel's largest and smallest channel, of 255; midtones
are pixels neither light nor dark. The contact sheet is the run's own: the base model above the LoRA, same noise.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import RESULTS, write

import sd_ext

PROMPTS = ("red apple", "tiger face", "rocket", "umbrella", "yellow star", "locomotive", "octopus", "red heart")
STRENGTHS = (0.0, 0.5, 1.0)


def command(*arguments: str) -> float:
    """Seconds of `sd-ext` with these arguments."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "sd_ext.cli", *arguments], check=True)
    return time.perf_counter() - started


def draw(pipe: Any) -> np.ndarray:
    """(prompts, height, width, 3) from fixed seeds."""
    made = []
    for seed, prompt in enumerate(PROMPTS):
        generator = torch.Generator().manual_seed(seed)
        made.append(pipe(prompt, num_inference_steps=20, guidance_scale=1.5, generator=generator).images[0])
    return np.stack([np.asarray(picture) for picture in made]).astype(float)


def main() -> None:
    from diffusers import StableDiffusionPipeline

    from sd_ext.lora import apply_lora, read_lora

    with tempfile.TemporaryDirectory() as work:
        data, out = Path(work) / "drawings", Path(work) / "run"
        command("train", "data", "--out", str(data), "--lines", "60")
        told = (data / "metadata.jsonl").read_text()
        assert not any(f'"text": "{prompt}"' in told for prompt in PROMPTS)
        seconds = command(
            "train", "lora", "embedded", "--data", str(data), "--out", str(out), "--prompts", ",".join(PROMPTS)
        )
        shutil.copy(out / "model" / "samples" / "sheet.png", RESULTS / "lora_style.png")
        lora = read_lora(out / "model" / "pytorch_lora_weights.safetensors")
        pipe = StableDiffusionPipeline.from_pretrained(sd_ext.pretrained_path())
        pipe.set_progress_bar_config(disable=True)
        rows = {}
        for strength in STRENGTHS:
            with apply_lora(pipe, lora, strength):
                made = draw(pipe)
            grey = made.mean(-1)
            rows[str(strength)] = {
                "colour": float((made.max(-1) - made.min(-1)).mean()),
                "midtones": float(((grey > 64) & (grey < 192)).mean()),
            }
    lines = ["| strength | colour, of 255 | midtones |", "|---|---|---|"]
    lines += [f"| {name} | {row['colour']:.1f} | {row['midtones']:.1%} |" for name, row in rows.items()]
    text = "\n".join([f"# A LoRA of line drawings: {seconds:.0f} s in all, with imports and previews", "", *lines])
    write("lora_style", {"seconds": seconds, "strengths": rows}, text)


if __name__ == "__main__":
    main()
