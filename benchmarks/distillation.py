"""What do a few-step LoRA and a slider of the embedded model do?

    python benchmarks/distillation.py [--model FOLDER] [--scorer FOLDER] [--work FOLDER]

Draws pictures of everyday things with the model itself (the teacher), and trains on them

few-step  `sd-ext train few-step`: four network calls without guidance beside twenty with it
slider    `sd-ext train slider`, from blue to red by the texts "blue X" and "red X"

Then other pictures are drawn, each from its own noise, the same in every row. Distance is the root mean square between
a picture and the teacher's of the same noise, of 255: what is far is not wrong by itself, since `lcm` adds noise of its
own between calls. Detail is the mean difference of pixels that are neighbours: blurred pictures have little. The
judge's first answers count (`judge`, made by `scorer.py`): is the thing there that was asked for? The numbers go to
results/distillation.json, the pictures to results/distillation_few.png and _slider.png.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import RESULTS, write
from PIL import Image
from scorer import interval, judge, load_scorer

import sd_ext
from sd_ext.lora import apply_lora, read_lora
from sd_ext.models.words import read_words
from sd_ext.schedulers import make_scheduler
from sd_ext.sheets import labelled_sheet

TAUGHT, ASKED, SHOWN = 128, 64, 12  # pictures to train on, to judge, and on a sheet
CALLS, SLIDER_CALLS, PIXELS = 20, 10, 80
STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
FEW = {  # row -> (with the LoRA, sampler, network calls, whether with guidance)
    f"{CALLS} calls, guidance": (False, "dpm++ 2m", CALLS, True),
    "4 calls, guidance": (False, "dpm++ 2m", 4, True),
    "4 calls, lcm": (False, "lcm", 4, False),
    "LoRA, 4 calls, lcm": (True, "lcm", 4, False),
    "LoRA, 4 calls, tcd": (True, "tcd", 4, False),
    "LoRA, 2 calls, lcm": (True, "lcm", 2, False),
}
COMMON = (
    "--flip",
    "false",
    "--mixed-precision",
    "bf16",
    "--validate-every",
    "0",
    "--tracker",
    "none",
)


class Drawer:
    """Draws batches with the model, in bfloat16.

    Args:
        model: a pipeline folder.
    """

    def __init__(self, model: Path):
        from diffusers import StableDiffusionPipeline

        words = read_words(model)
        self.guidance = (words and words.guidance) or 3.0
        self.pipe: Any = StableDiffusionPipeline.from_pretrained(model, local_files_only=True)
        self.pipe.set_progress_bar_config(disable=True)
        self.config = dict(self.pipe.scheduler.config)

    @torch.no_grad()
    def draw(self, prompts: Sequence[str], first: int, sampler: str, calls: int, guided: bool) -> np.ndarray:
        """(prompts, height, width, 3) uint8; each from noise of its own seed, from `first` on."""
        made = []
        self.pipe.scheduler = make_scheduler(sampler, self.config)
        for start in range(0, len(prompts), 32):
            some = list(prompts[start : start + 32])
            noise = [torch.Generator().manual_seed(first + start + n) for n in range(len(some))]
            with torch.autocast("cpu", torch.bfloat16):
                images = self.pipe(
                    some, num_inference_steps=calls, guidance_scale=self.guidance if guided else 1.0, generator=noise,
                    output_type="pt",
                ).images  # fmt: skip
            made.append((images.float().permute(0, 2, 3, 1) * 255).round().clamp(0, 255).to(torch.uint8).numpy())
        return np.concatenate(made)


def things(model: Path) -> list[str]:
    """The things that the model says it knows, shuffled."""
    words = read_words(model)
    if not words:
        raise SystemExit(f"{model} has no words.json: what to ask it for is not known")
    names = sorted({thing.names[0] for group in words.things.values() for thing in group})
    return [names[i] for i in np.random.default_rng(0).permutation(len(names))]


def keep(folder: Path, pictures: np.ndarray, captions: Sequence[str]) -> None:
    folder.mkdir(parents=True)
    for number, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        Image.fromarray(picture).save(folder / f"{number:04d}.png")
        (folder / f"{number:04d}.txt").write_text(caption)


def train(command: str, model: Path, out: Path, *flags: str) -> tuple[Any, float | None]:
    """(the LoRA, seconds of the processor). What is there is not trained again: None seconds."""
    file = out / "model" / "pytorch_lora_weights.safetensors"
    if file.exists():
        return read_lora(file), None
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    name = (command, "embedded", "--model", str(model), "--out", str(out))
    subprocess.run([sys.executable, "-m", "sd_ext.cli", "train", *name, *COMMON, *flags], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return read_lora(file), after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def detail(pictures: np.ndarray) -> float:
    """The mean difference of neighbouring pixels."""
    pixels = pictures.astype(float)
    return float((np.abs(np.diff(pixels, axis=1)).mean() + np.abs(np.diff(pixels, axis=2)).mean()) / 2)


def right(scorer: Any, pictures: np.ndarray, wanted: Sequence[str]) -> dict[str, Any]:
    """How often the judge's first answer is the thing, with its 95 % interval in per cent."""
    known = [n for n, thing in enumerate(wanted) if thing in scorer.labels["concept"]]
    said = judge(scorer, torch.from_numpy(pictures[known]).permute(0, 3, 1, 2))["concept"].argmax(1).tolist()
    hits = sum(scorer.labels["concept"][label] == wanted[n] for label, n in zip(said, known, strict=True))
    return {"right": hits, "of": len(known), "interval": interval(hits, len(known))}


def told(score: dict[str, Any] | None) -> str:
    if score is None:
        return "not judged"
    low, high = score["interval"]
    return f"{score['right']} of {score['of']} ({low:.0f} to {high:.0f} %)"


def small(pictures: np.ndarray) -> list[Image.Image]:
    return [Image.fromarray(p).resize((PIXELS, PIXELS), Image.Resampling.LANCZOS) for p in pictures[:SHOWN]]


def few_step(drawer: Drawer, lora: Any, asked: Sequence[str], scorer: Any) -> tuple[dict[str, Any], list[str]]:
    """Numbers and table of the few-step LoRA; its sheet is written."""
    found: dict[str, Any] = {}
    rows: dict[str, list[Image.Image]] = {}
    teacher = np.zeros(0)
    prompts = [f"a {thing}" for thing in asked]
    for name, (with_it, sampler, calls, guided) in FEW.items():
        started = time.process_time()
        with apply_lora(drawer.pipe, lora, 1.0) if with_it else contextlib.nullcontext():
            drawn = drawer.draw(prompts, 5000, sampler, calls, guided)
        seconds = (time.process_time() - started) / len(drawn)
        teacher = teacher if len(teacher) else drawn.astype(float)
        found[name] = {
            "evaluations": calls * (2 if guided else 1),
            "distance": float(np.sqrt(np.mean((drawn - teacher) ** 2))),
            "detail": detail(drawn),
            "cpu_seconds": seconds,
            "thing": right(scorer, drawn, asked) if scorer else None,
        }
        rows[name] = small(drawn)
    labelled_sheet(rows, list(asked[:SHOWN]), SHOWN).save(RESULTS / "distillation_few.png")
    lines = ["| | network evaluations | CPU seconds a picture | distance | detail | the thing |", "|---" * 6 + "|"]
    lines += [
        f"| {name} | {f['evaluations']} | {f['cpu_seconds']:.2f} | {f['distance']:.0f} | {f['detail']:.1f} "
        f"| {told(f['thing'])} |"
        for name, f in found.items()
    ]
    return found, lines


def slider(drawer: Drawer, lora: Any, asked: Sequence[str], scorer: Any) -> tuple[dict[str, Any], list[str]]:
    """Numbers and table of the slider; its sheet is written."""
    found: dict[str, Any] = {}
    rows: dict[str, list[Image.Image]] = {}
    lines = [
        "",
        "## Slider from blue to red",
        "",
        "| strength | red minus blue, of 255 | detail | the thing |",
        "|---" * 4 + "|",
    ]
    for strength in STRENGTHS:
        with apply_lora(drawer.pipe, lora, strength) if strength else contextlib.nullcontext():
            drawn = drawer.draw(asked, 7000, "dpm++ 2m", SLIDER_CALLS, True)
        red, judged = (
            float((drawn[..., 0] * 1.0 - drawn[..., 2]).mean()),
            right(scorer, drawn, asked) if scorer else None,
        )
        found[f"{strength:g}"] = {"red_minus_blue": red, "detail": detail(drawn), "thing": judged}
        rows[f"{strength:+g}" if strength else "0"] = small(drawn)
        lines.append(f"| {strength:g} | {red:.1f} | {detail(drawn):.1f} | {told(judged)} |")
    labelled_sheet(rows, list(asked[:SHOWN]), SHOWN).save(RESULTS / "distillation_slider.png")
    return found, lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(sd_ext.pretrained_path()), metavar="FOLDER")
    parser.add_argument("--scorer", default=str(Path(__file__).parent / "judge"), metavar="FOLDER", help="'' for none")
    parser.add_argument("--work", metavar="FOLDER", help="keep pictures and runs there, and go on from what is there")
    given = parser.parse_args()
    model = Path(given.model)
    scorer = load_scorer(Path(given.scorer)) if given.scorer else None
    drawer, known = Drawer(model), things(model)
    taught = [known[n % len(known)] for n in range(TAUGHT)]
    if scorer:
        known = [thing for thing in known if thing in scorer.labels["concept"]]
    asked = [known[n % len(known)] for n in range(ASKED)]
    side = ("--resolution", str(drawer.pipe.vae.config.sample_size))
    guidance = ("--teacher-guidance", f"{drawer.guidance:g}")
    with contextlib.ExitStack() as stack:
        work = Path(given.work or stack.enter_context(tempfile.TemporaryDirectory()))
        if not (work / "plain").exists():
            drawn = drawer.draw(taught, 0, "dpm++ 2m", CALLS, True)
            for name, form in (("own", "a {}"), ("plain", "{}")):
                keep(work / name, drawn, [form.format(thing) for thing in taught])
        few, first = train("few-step", model, work / "few", "--data", str(work / "own"), *guidance, *side)
        ends = ("--positive", "red {}", "--negative", "blue {}", "--steps", "80")
        red, second = train("slider", model, work / "red", "--data", str(work / "plain"), *ends, *side)
    seconds = {"few-step": first, "slider": second}
    took = [f"{s:.0f} s of the processor ({name})" for name, s in seconds.items() if s is not None]
    about = (
        f"{TAUGHT} pictures by the teacher to train on, {ASKED} others to measure; guidance {drawer.guidance:g}. "
        f"{'Training took ' + ', '.join(took) + ', with imports. ' if took else ''}95 % intervals in brackets."
    )
    found, lines = few_step(drawer, few, asked, scorer)
    moved, more = slider(drawer, red, asked[: ASKED // 4], scorer)
    text = "\n".join(["# A few-step LoRA and a slider of the embedded model", "", about, "", *lines, *more])
    write("distillation", {"cpu_seconds": seconds, "few_step": found, "slider": moved}, text)


if __name__ == "__main__":
    main()
