"""What do a few-step LoRA and two sliders of the embedded model do?

    python benchmarks/distillation.py [--model FOLDER] [--scorer FOLDER] [--work FOLDER]

Draws pictures of everyday things with the model itself (the teacher), and trains on them

few-step        `sd-ext train few-step`: four network calls without guidance beside twenty with it
text slider     `sd-ext train slider`, from blue to red by the texts "blue X" and "red X"
picture slider  `sd-ext train slider --less-data`, from dark to light by pairs of one picture, darkened and lightened

Then other pictures are drawn, each from its own noise, the same in every row. Distance is the root mean square between
a picture and the teacher's of the same noise, of 255: what is far is not wrong by itself, since `lcm` adds noise of its
own between calls. Detail is the mean difference of pixels that are neighbours: blurred pictures have little. The
judge's first answers count (`judge`, made by `scorer.py`): is the thing there that was asked for? The numbers go to
results/distillation.json, the pictures to results/distillation_few.png and _sliders.png.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
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

TAUGHT, ASKED, SHOWN = 128, 96, 12  # pictures to train on, to judge, and on a sheet
CALLS, PIXELS = 20, 80
STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)
FEW = {  # row -> (with the LoRA, sampler, network calls, whether with guidance)
    f"{CALLS} calls, guidance": (False, "dpm++ 2m", CALLS, True),
    "4 calls, guidance": (False, "dpm++ 2m", 4, True),
    "4 calls, lcm": (False, "lcm", 4, False),
    "LoRA, 4 calls, lcm": (True, "lcm", 4, False),
    "LoRA, 4 calls, tcd": (True, "tcd", 4, False),
    "LoRA, 2 calls, lcm": (True, "lcm", 2, False),
}
SHORT = ("--steps", "80")  # of the sliders
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


def train(command: str, model: Path, out: Path, *flags: str) -> tuple[Any, float]:
    """(the LoRA, seconds of the command). A run that is there is not trained again."""
    started = time.perf_counter()
    name = (command, "embedded", "--model", str(model), "--out", str(out))
    subprocess.run([sys.executable, "-m", "sd_ext.cli", "train", *name, *COMMON, *flags], check=True)
    return read_lora(out / "model" / "pytorch_lora_weights.safetensors"), time.perf_counter() - started


def gamma(pictures: np.ndarray, power: float) -> np.ndarray:
    return (255 * (pictures / 255.0) ** power).round().astype(np.uint8)


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


def at_strengths(drawer: Drawer, lora: Any, asked: Sequence[str]) -> Iterator[tuple[float, np.ndarray]]:
    for strength in STRENGTHS:
        with apply_lora(drawer.pipe, lora, strength) if strength else contextlib.nullcontext():
            yield strength, drawer.draw(asked, 7000, "dpm++ 2m", CALLS, True)


def sliders(drawer: Drawer, loras: dict[str, Any], asked: Sequence[str], scorer: Any) -> tuple[dict, list[str]]:
    """Numbers and tables of the sliders; their sheet is written."""
    found: dict[str, Any] = {}
    rows: dict[str, list[Image.Image]] = {}
    measures = {
        "blue to red": ("red minus blue, of 255", lambda p: float((p[..., 0] * 1.0 - p[..., 2]).mean())),
        "dark to light": ("brightness, of 255", lambda p: float(p.mean())),
    }
    lines: list[str] = []
    for name, lora in loras.items():
        what, of = measures[name]
        found[name] = {}
        for strength, drawn in at_strengths(drawer, lora, asked):
            judged = right(scorer, drawn, asked) if scorer else None
            found[name][f"{strength:g}"] = {"measured": of(drawn), "detail": detail(drawn), "thing": judged}
            rows[f"{name}, {strength:+g}" if strength else f"{name}, 0"] = small(drawn)
        lines += ["", f"## Slider from {name}", "", f"| strength | {what} | detail | the thing |", "|---" * 4 + "|"]
        lines += [
            f"| {strength} | {f['measured']:.1f} | {f['detail']:.1f} | {told(f['thing'])} |"
            for strength, f in found[name].items()
        ]
    labelled_sheet(rows, list(asked[:SHOWN]), SHOWN).save(RESULTS / "distillation_sliders.png")
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
        if not (work / "light").exists():
            drawn = drawer.draw(taught, 0, "dpm++ 2m", CALLS, True)
            for name, pictures, form in (("own", drawn, "a {}"), ("dark", gamma(drawn, 1.8), "{}"),
                                         ("plain", drawn, "{}"), ("light", gamma(drawn, 0.55), "{}")):  # fmt: skip
                keep(work / name, pictures, [form.format(thing) for thing in taught])
        few, first = train("few-step", model, work / "few", "--data", str(work / "own"), *guidance, *side)
        ends = ("--positive", "red {}", "--negative", "blue {}")
        red, second = train("slider", model, work / "red", "--data", str(work / "plain"), *ends, *side, *SHORT)
        pairs = ("--data", str(work / "light"), "--less-data", str(work / "dark"))
        light, third = train("slider", model, work / "bright", *pairs, *side, *SHORT)
    seconds = {"few-step": first, "blue to red": second, "dark to light": third}
    about = (
        f"{TAUGHT} pictures by the teacher to train on, {ASKED} others to measure; guidance {drawer.guidance:g}. "
        f"Training took {', '.join(f'{s:.0f} s ({name})' for name, s in seconds.items())}, with imports. "
        "95 % intervals in brackets."
    )
    found, lines = few_step(drawer, few, asked, scorer)
    moved, more = sliders(drawer, {"blue to red": red, "dark to light": light}, asked[: ASKED // 4], scorer)
    text = "\n".join(["# Few-step and slider LoRAs of the embedded model", "", about, "", *lines, *more])
    write("distillation", {"seconds": seconds, "few_step": found, "sliders": moved}, text)


if __name__ == "__main__":
    main()
