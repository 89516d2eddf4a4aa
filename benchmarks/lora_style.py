"""Does a LoRA of sixty black and white drawings make the embedded model draw so?

    python benchmarks/lora_style.py [--override steps=300 --override rank=8 ...]

Runs `sd-ext train lora embedded --data high-contrast` as the preset is (but for what is overridden), then draws things
that are among the sixty and things that are not, in four ways of asking, at strengths from 0 to 1. Of each picture:

colour      the mean distance of a pixel's largest and smallest channel, of 255
black or white  the share of pixels whose grey is below 64 or above 192 and whose colour is below 32: of the sixty
            drawings themselves nearly all are

The picture shows the same things from the same noise: a row for each strength.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import RESULTS, write
from PIL import Image

import sd_ext
from sd_ext.lora import apply_lora, read_lora
from sd_ext.models.words import read_words
from sd_ext.sheets import labelled_sheet
from sd_ext.training.data.shipped import shipped_sets

DATA = "high-contrast"
NEW = ("dog", "rocket", "strawberry", "banana", "guitar", "crab", "penguin", "moon")
GROUPS = {"of the sixty": ("cat", "owl", "apple", "house", "car", "octopus"), "others": NEW}
FORMS = ("{}", "{}, high contrast", "red {}", "a blue {}")
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
STEPS, SHOWN = 20, 96  # network calls; pixels of a picture on the sheet


def train(out: Path, overrides: list[str]) -> float:
    """Seconds of the command, imports and previews included."""
    flags = [part for each in overrides for part in ("--override", each)]
    started = time.perf_counter()
    command = [sys.executable, "-m", "sd_ext.cli", "train", "lora", "embedded", "--data", DATA, "--out", str(out)]
    subprocess.run([*command, "--prompts", ",".join(NEW), *flags], check=True)
    return time.perf_counter() - started


def drawings() -> tuple[set[str], np.ndarray]:
    """(the things of the set, its pictures: (n, height, width, 3))."""
    folder = shipped_sets()[DATA]
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    pictures = [np.asarray(Image.open(folder / row["file_name"]).convert("RGB")) for row in rows]
    return {row["concept"] for row in rows}, np.stack(pictures)


@torch.no_grad()
def draw(pipe: Any, things: tuple[str, ...], form: str, guidance: float) -> np.ndarray:
    """(things, height, width, 3) uint8; each thing has its own noise, the same at every strength."""
    noise = [torch.Generator().manual_seed(seed) for seed in range(len(things))]
    prompts = [form.format(thing) for thing in things]
    made = pipe(prompts, num_inference_steps=STEPS, guidance_scale=guidance, generator=noise)
    return np.stack([np.asarray(picture) for picture in made.images])


def measured(pictures: np.ndarray) -> dict[str, list[float]]:
    """Of each picture: colour, and the share that is black or white."""
    pixels = pictures.astype(float)
    colour, grey = pixels.max(-1) - pixels.min(-1), pixels.mean(-1)
    pure = (colour < 32) & ((grey < 64) | (grey > 192))
    return {"colour": colour.mean((1, 2)).tolist(), "black_or_white": pure.mean((1, 2)).tolist()}


def together(parts: Iterable[np.ndarray]) -> dict[str, list[float]]:
    """What `measured` says of all pictures of several arrays."""
    return measured(np.concatenate(list(parts)))


def interval(values: list[float], draws: int = 2000) -> tuple[float, float, float]:
    """(mean, and the ends of its 95 % interval by resampling)."""
    random, found = np.random.default_rng(0), np.asarray(values)
    means = found[random.integers(len(found), size=(draws, len(found)))].mean(1)
    return float(found.mean()), *map(float, np.quantile(means, (0.025, 0.975)))


def row(name: str, groups: list[dict[str, list[float]]]) -> str:
    cells = []
    for key, unit in (("colour", ""), ("black_or_white", "%")):
        for group in groups:
            mean, low, high = (100 * v if unit else v for v in interval(group[key]))
            cells.append(f"{mean:.1f}{unit} ({low:.1f} to {high:.1f})")
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    from diffusers import StableDiffusionPipeline

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--override", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--lora", help="measure this LoRA, and train none", metavar="FOLDER")
    given = parser.parse_args()

    things, sixty = drawings()
    assert set(GROUPS["of the sixty"]) <= things
    assert not set(NEW) & things
    words = read_words(Path(sd_ext.pretrained_path()))
    guidance = (words and words.guidance) or 1.5
    with tempfile.TemporaryDirectory() as work:
        seconds = None if given.lora else train(Path(work) / "run", given.override)
        lora = read_lora(Path(given.lora or Path(work) / "run" / "model") / "pytorch_lora_weights.safetensors")
    pipe: Any = StableDiffusionPipeline.from_pretrained(sd_ext.pretrained_path())
    pipe.set_progress_bar_config(disable=True)

    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    shown: dict[str, list[Image.Image]] = {}
    for strength in STRENGTHS:
        with apply_lora(pipe, lora, strength):
            made = {name: {form: draw(pipe, of, form, guidance) for form in FORMS} for name, of in GROUPS.items()}
        found[str(strength)] = {name: together(each.values()) for name, each in made.items()}
        first = [picture for each in made.values() for picture in each[FORMS[0]]]
        shown[f"{strength:g}"] = [Image.fromarray(p).resize((SHOWN, SHOWN), Image.Resampling.LANCZOS) for p in first]
    captions = [thing for things in GROUPS.values() for thing in things]
    labelled_sheet(shown, captions, len(captions) // 2).save(RESULTS / "lora_style.png")

    headings = [f"{what}, {who}" for what in ("colour, of 255", "black or white") for who in GROUPS]
    lines = [f"| strength | {' | '.join(headings)} |", "|---" * (1 + len(headings)) + "|"]
    lines += [row(name, list(groups.values())) for name, groups in found.items()]
    lines += [row("the sixty drawings", [measured(sixty)] * 2)]
    taken = "" if seconds is None else f": {seconds:.0f} s in all, with imports and previews"
    about = (
        f"{len(FORMS)} ways to ask for each thing, guidance {guidance:g}, {STEPS} calls; 95 % intervals in brackets."
    )
    text = "\n".join([f"# A LoRA of sixty high contrast drawings{taken}", "", about, "", *lines])
    write("lora_style", {"seconds": seconds, "overrides": given.override, "strengths": found}, text)


if __name__ == "__main__":
    main()
