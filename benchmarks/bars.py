"""Does the embedded model draw what it is asked for?

    python benchmarks/bars.py --data SET [--model FOLDER] [--scorer FOLDER] [--guidance G] [--steps 20] [--few]

SET is drawn by `sd-ext train data --packages`. The judge is a small network that learnt to name drawings and never saw
a picture of this model (`scorer.py`); how often it is right about real pictures of drawings it never saw stands beside
every score. The captions, concepts and seeds were not used in choosing anything. Every share has a 95 % interval.

- phrasing: 100 concepts in nine forms: is the judge's first answer the concept?
- style, counts, grounds, colours of things that never met, two things that never met;
- variety: how far apart are the pictures of one caption, and in how many styles?
- the autoencoder on drawings it never saw, and the spread of its posterior on plain colours, noise and cuttings;
- how near are the pictures to real ones: own concept among the nearest drawings; Fréchet distance, precision and
  recall (Kynkäänniemi et al. 2019, arXiv 1904.06991) in the judge's features against held-out pictures.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import RESULTS, write
from PIL import Image, ImageDraw, ImageFont
from retrieval import Descriptions, ranks
from scipy.linalg import sqrtm
from scorer import (
    HELD_OUT,
    Scorer,
    accuracy,
    interval,
    judge,
    load_scorer,
    read_pictures,
    read_rows,
    scaled,
)
from torch import Tensor

import sd_ext
from sd_ext.reading import read_json
from sd_ext.training.data.images import to_uint8
from sd_ext.training.data.strangers import cutting, halves, noise, plain
from sd_ext.training.model.pipeline import folder_size
from sd_ext.training.sets.drawings.book import Drawing, read_book
from sd_ext.training.sets.drawings.grammar import read_grammar
from sd_ext.training.sets.drawings.held_out import STYLE, read_held_out

HERE = Path(__file__).parent
FORMS: dict[str, Callable[[str, str], str]] = {  # of (name, plural)
    "X": lambda x, xs: x,
    "a X": lambda x, xs: SPEECH.article(x, x),
    "the X": lambda x, xs: f"the {x}",
    "X emoji": lambda x, xs: f"{x} emoji",
    "an icon of a X": lambda x, xs: f"an icon of {SPEECH.article(x, x)}",
    "a photo of a X": lambda x, xs: f"a photo of {SPEECH.article(x, x)}",
    "Xs": lambda x, xs: xs,
    "UPPER CASE": lambda x, xs: f"a {x}".upper(),
    "turned round": lambda x, xs: " ".join(reversed(f"a {x}".split())),
}
GRAMMAR = read_grammar()
SPEECH = GRAMMAR.speech
ASKED_STYLES = [style for style, said in GRAMMAR.style_behind.items() if said]
GROUNDS = ("red", "orange", "yellow", "green", "blue", "purple", "pink")
SHOWN = ("a red apple", "a cat", "rocket", "a photo of an octopus", "three stars", "a 3d car", "flat owl",
         "cartoon dog", "a mushroom on a blue background", "pixel art of a tree", "a rocket at night",
         "AN ELEPHANT")  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A picture to draw and what must be seen in it.

    Args:
        caption, seed: of the picture.
        wanted: head of the judge -> its right answer; two concepts must both be among its first two.
    """

    caption: str
    seed: int
    wanted: dict[str, tuple[str, ...]]


class Model:
    """Draws batches of captions; in bfloat16 unless told, which is three times as fast where there is AMX."""

    def __init__(self, folder: str, steps: int, guidance: float, bf16: bool = True):
        from diffusers import StableDiffusionPipeline

        self.folder, self.steps, self.guidance, self.bf16 = Path(folder), steps, guidance, bf16
        self.pipe: Any = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
        self.pipe.set_progress_bar_config(disable=True)
        self.size = self.pipe.vae.config.sample_size

    def draw(self, captions: Sequence[str], seeds: Sequence[int], title: str = "") -> np.ndarray:
        """Pictures (captions, size, size, 3) uint8."""
        parts = []
        for start in range(0, len(captions), 64):
            some = slice(start, start + 64)
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[some]]
            with torch.autocast("cpu", torch.bfloat16, self.bf16):
                images = self.pipe(
                    list(captions[some]), num_inference_steps=self.steps, guidance_scale=self.guidance,
                    generator=generators, height=self.size, width=self.size, output_type="pt",
                ).images  # fmt: skip
            parts.append(to_uint8(images.float() * 2 - 1))
            print(f"\r{title} {min(start + 64, len(captions))}/{len(captions)}", end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return np.concatenate(parts)


def share(hits: Sequence[bool] | np.ndarray) -> dict[str, Any]:
    right, of = int(np.sum(hits)), len(hits)
    return {"right": right, "of": of, "percent": 100 * right / max(1, of), "interval": interval(right, of)}


def tensor(pictures: np.ndarray) -> Tensor:
    """(n, 3, 64, 64) uint8, as the judge reads them."""
    if pictures.shape[1] != 64:
        pictures = np.stack([np.asarray(Image.fromarray(p).resize((64, 64), Image.Resampling.BOX)) for p in pictures])
    return torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2)


def hits(scorer: Scorer, pictures: np.ndarray, asked: Sequence[Asked]) -> dict[str, np.ndarray]:
    """For each head that is asked for, which pictures are right (n,); "all": those right in everything."""
    found = judge(scorer, tensor(pictures))
    made = {}
    for head in asked[0].wanted:
        names, right = scorer.labels[head], []
        for row, each in zip(found[head], asked, strict=True):
            wanted = set(each.wanted[head])
            right.append(wanted == {names[i] for i in row.topk(len(wanted)).indices.tolist()})
        made[head] = np.array(right)
    return {**made, "all": np.logical_and.reduce(list(made.values()))}


# ---- what is asked ---------------------------------------------------------------------------------------------------


class Questions:
    """The captions of each bar, drawn by chance from what the model learnt and from what was held out."""

    def __init__(self, drawings: Sequence[Drawing], few: bool):
        self.random = np.random.default_rng(20261128)
        self.concepts = sorted({d.concept for d in drawings if d.split != STYLE})
        self.counted = [c for c in self.concepts if SPEECH.counted(c)]
        self.styles: dict[str, set[str]] = {}
        for drawing in drawings:
            if drawing.split != STYLE:
                self.styles.setdefault(drawing.style, set()).add(drawing.concept)
        self.held_out, self.few = read_held_out(), 4 if few else 1
        self.hundred = self.some(self.concepts, 100)

    def some(self, known: Sequence[str], count: int) -> list[str]:
        count = min(len(known), max(1, count // self.few))
        return [known[i] for i in self.random.permutation(len(known))[:count]]

    def phrasing(self) -> dict[str, list[Asked]]:
        names = {c: (c, SPEECH.plural(c)) for c in self.hundred}
        return {
            form: [Asked(say(*names[c]), 7 + i, {"concept": (c,)}) for i, c in enumerate(self.hundred)]
            for form, say in FORMS.items()
        }

    def style(self) -> dict[str, list[Asked]]:
        made = {}
        for style in ASKED_STYLES:
            known = sorted(self.styles.get(style, set(self.concepts)))
            ways = GRAMMAR.style_forms.get(style) or [f"{{a thing}}, {way}" for way in GRAMMAR.style_behind[style]]
            said = [(c, ways[i % len(ways)]) for i, c in enumerate(self.some(known, 60))]
            made[style] = [
                Asked(
                    way.replace("{a thing}", SPEECH.article(c, c)).replace("{thing}", c), 100 + i, {"style": (style,)}
                )
                for i, (c, way) in enumerate(said)
            ]
        return made

    def pairs(self) -> list[Asked]:
        pairs = sorted(pair for pair in self.held_out.pairs if pair[1] in self.concepts)
        return [
            Asked(SPEECH.article(f"{colour} {c}", f"{colour} {c}"), 200 + seed, {"colour": (colour,), "concept": (c,)})
            for colour, c in pairs for seed in range(8 // self.few)
        ]  # fmt: skip

    def counts(self) -> dict[str, list[Asked]]:
        said = {1: lambda c: SPEECH.article(c, c), 2: lambda c: f"two {SPEECH.plural(c)}",
                3: lambda c: f"three {SPEECH.plural(c)}"}  # fmt: skip
        return {
            str(number): [
                Asked(say(c), 300 + i, {"number": (str(number),)}) for i, c in enumerate(self.some(self.counted, 100))
            ]
            for number, say in said.items()
        }

    def grounds(self) -> list[Asked]:
        return [
            Asked(f"{SPEECH.article(c, c)} on {SPEECH.article(g, g)} background", 400 + i, {"ground": (g,)})
            for i, c in enumerate(self.some(self.concepts, 140))
            for g in [GROUNDS[i % len(GROUNDS)]]
        ]  # fmt: skip

    def two(self) -> list[Asked]:
        together = sorted(sorted(pair) for pair in self.held_out.together if set(pair) <= set(self.concepts))
        return [
            Asked(f"{SPEECH.article(a, a)} and {SPEECH.article(b, b)}", 500 + seed, {"concept": (a, b)})
            for a, b in together for seed in range(8 // self.few)
        ]  # fmt: skip

    def phrases(self) -> list[Asked]:
        """Forms of captions that were never used."""
        forms = self.held_out.phrasings
        return [
            Asked(
                forms[i % len(forms)].replace("{a thing}", SPEECH.article(c, c)).replace("{thing}", c), 600 + i,
                {"concept": (c,)},
            )
            for i, c in enumerate(self.hundred)
        ]  # fmt: skip


# ---- what is measured ------------------------------------------------------------------------------------------------


def asked_and_drawn(model: Model, scorer: Scorer, asked: Sequence[Asked], title: str) -> dict[str, Any]:
    pictures = model.draw([a.caption for a in asked], [a.seed for a in asked], title)
    return {name: share(each) for name, each in hits(scorer, pictures, asked).items()}


def variety(model: Model, scorer: Scorer, concepts: Sequence[str]) -> dict[str, Any]:
    """RMS between seeds and between captions, of 255; and how many styles the judge sees among eight seeds."""
    captions = [SPEECH.article(c, c) for c in concepts]
    drawn = model.draw([c for c in captions for _ in range(8)], list(range(8)) * len(captions), "variety")
    by = drawn.reshape(len(captions), 8, -1).astype(np.float32)
    seeds = np.sqrt(np.mean([((each[:, None] - each[None]) ** 2).sum() / (8 * 7 * each.shape[1]) for each in by]))
    first = by[:, 0]
    total = sum(((first - np.roll(first, k, 0)) ** 2).mean() for k in range(1, len(first)))
    between = np.sqrt(total / (len(first) - 1))
    seen = judge(scorer, tensor(drawn))["style"].argmax(1).reshape(len(captions), 8).numpy()
    styles = np.array([len(set(each)) for each in seen])
    return {
        "between_seeds": float(seeds), "between_captions": float(between), "ratio": float(seeds / between),
        "three_styles": share(styles >= 3), "mean_styles": float(styles.mean()),
    }  # fmt: skip


@torch.no_grad()
def autoencoder(vae: Any, data: Path, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """PSNR on held-out drawings, and the largest posterior spread on what is no drawing."""
    white = [r for r in rows if r["shows"] == "one" and r["ground"] == "white" and r["size"] == "usual"][:400]
    made: dict[str, Any] = {}
    for name, some in {"one thing on white": white, "all kinds of scenes": rows[:400]}.items():
        pixels = scaled(read_pictures(data, some))
        decoded = torch.cat([vae.decode(vae.encode(p).latent_dist.mean).sample for p in pixels.split(32)])
        psnr = 10 * torch.log10(4 / (decoded.clamp(-1, 1) - pixels).square().mean((1, 2, 3)))
        made[name] = {"psnr": float(psnr.mean()), "error": float(1.96 * psnr.std() / len(psnr) ** 0.5), "of": len(psnr)}
    random = torch.Generator().manual_seed(0)
    real = scaled(read_pictures(data, rows[:100]))
    for kind in (plain, halves, noise, cutting):
        strange = torch.stack([kind(picture, random) for picture in real])
        spread = vae.encode(strange).latent_dist.std.amax((1, 2, 3))
        made[f"spread, {kind.__name__}"] = {"median": float(spread.median()), "max": float(spread.max())}
    return made


@torch.no_grad()
def likeness(model: Model, scorer: Scorer, data: Path, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fréchet distance, precision and recall in the judge's features against held-out pictures of the same captions."""
    rows = rows[: len(rows) // 2 * 2]
    real = read_pictures(data, rows)
    drawn = tensor(model.draw([r["text"] for r in rows], list(range(len(rows))), "likeness"))
    features = [
        torch.cat([scorer.features(scaled(p)) for p in part.split(256)]).double().numpy()
        for part in (real, drawn, real[::2], real[1::2])
    ]
    precision, recall = near_share(features[0], features[1]), near_share(features[1], features[0])
    return {
        "frechet": frechet(features[0], features[1]), "frechet_of_two_halves_of_the_real": frechet(*features[2:]),
        "precision": precision, "recall": recall, "of": len(rows),
    }  # fmt: skip


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """The Fréchet distance of two Gaussians fitted to features (n, d)."""
    ca, cb = np.cov(a.T), np.cov(b.T)
    root = sqrtm(ca @ cb)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(ca + cb - 2 * np.real(root)))


def near_share(known: np.ndarray, asked: np.ndarray, neighbours: int = 3) -> float:
    """The share of `asked` that lie within the distance to the third neighbour of some of `known`."""
    a, b = torch.from_numpy(known), torch.from_numpy(asked)
    radius = torch.cdist(a, a).kthvalue(neighbours + 1, 1).values
    return float((torch.cdist(b, a) <= radius[None]).any(1).double().mean())


def retrieval(model: Model, book: Any, concepts: Sequence[str]) -> dict[str, Any]:
    """Is a drawing of the own concept nearest of all drawings, on white, by descriptions that nobody trained?"""
    known = [d for d in book.drawings if d.split != STYLE]
    pictures = []
    for drawing in known:
        pixels = Image.fromarray(book.pixels(drawing))
        white = Image.new("RGBA", pixels.size, "white")
        white.alpha_composite(pixels)
        small = white.convert("RGB").resize((52, 52), Image.Resampling.LANCZOS)
        pictures.append(np.pad(np.asarray(small), ((6, 6), (6, 6), (0, 0)), constant_values=255))
    captions = [f"{SPEECH.article(c, c)} on a white background" for c in concepts]
    drawn = model.draw(captions, list(range(700, 700 + len(captions))), "retrieval")
    own = np.array([[d.concept == c for d in known] for c in concepts])
    rank = ranks(Descriptions(np.stack(pictures)).to(drawn), own)
    return {"nearest": share(rank < 1), "among_five": share(rank < 5), "drawings": len(known)}


def first_picture(repeats: int = 5) -> dict[str, float]:
    """Seconds of the README's first command, imports included: median and worst."""
    times = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as out:
            started = time.perf_counter()
            command = [sys.executable, "-m", "sd_ext.cli", "generate", "a red apple", "--out", out]
            subprocess.run(command, check=True, capture_output=True)
            times.append(time.perf_counter() - started)
    return {"median": float(np.median(times)), "worst": max(times), "repeats": repeats}


# ---- what is shown ---------------------------------------------------------------------------------------------------


def broken(text: str, width: int, font: Any) -> str:
    """A text in lines of at most `width` pixels, as far as its words allow."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines[-1:] = [longer] if font.getlength(longer) <= width or not lines[-1] else [lines[-1], word]
    return "\n".join(lines)


def sheet(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]], captions: Sequence[str] = (), left: int = 190
) -> Image.Image:
    """Rows of pictures with a name on the left, which `left` pixels are for, and captions above."""
    size, gap, font = rows[0][1][0].shape[0], 4, ImageFont.load_default(11)
    texts = [broken(caption, size, font) for caption in captions]
    top = 4 + 15 * max((text.count("\n") + 1 for text in texts), default=0)
    wide = max(len(pictures) for _, pictures in rows)
    canvas = Image.new("RGB", (left + wide * (size + gap), top + len(rows) * (size + gap)), "white")
    pen = ImageDraw.Draw(canvas)
    for i, text in enumerate(texts):
        pen.multiline_text((left + i * (size + gap) + 2, 2), text, fill="black", font=font, spacing=2)
    for r, (name, pictures) in enumerate(rows):
        y = top + r * (size + gap)
        pen.text((4, y + size // 2 - 6), name, fill="black", font=font)
        for i, picture in enumerate(pictures):
            canvas.paste(Image.fromarray(picture), (left + i * (size + gap), y))
    return canvas


def report(r: dict[str, Any]) -> str:
    """The result as Markdown."""

    def percent(each: dict[str, Any]) -> str:
        low, high = each["interval"]
        return f"{each['percent']:.0f} % ({low:.0f} to {high:.0f})"

    def decibels(each: dict[str, float]) -> str:
        return f"{each['psnr']:.1f} dB (± {each['error']:.1f})"

    judge_of, pairs, v, a, near, first = (
        r[name] for name in ("judge", "pairs", "variety", "autoencoder", "likeness", "first_picture")
    )
    spread = max(each["max"] for name, each in a.items() if name.startswith("spread"))
    found = r["retrieval"]
    halves_of_real = near["frechet_of_two_halves_of_the_real"]
    of = {name: percent(each) for name, each in judge_of.items()}
    rows = [
        *((f"phrasing “{form}”: the thing", "90 %", percent(each["concept"]), of["concept"])
          for form, each in r["phrasing"].items()),
        ("phrasings never used: the thing", "", percent(r["new phrasings"]["concept"]), of["concept"]),
        *((f"style “{style}”", "85 %", percent(each["style"]), of["style"]) for style, each in r["style"].items()),
        ("colour and thing that never met: both", "70 %", percent(pairs["all"]), ""),
        ("of these, the colour", "", percent(pairs["colour"]), of["colour"]),
        ("of these, the thing", "", percent(pairs["concept"]), of["concept"]),
        *((f"number: {n}", "60 %", percent(each["number"]), of["number"]) for n, each in r["counts"].items()),
        ("a coloured ground", "80 %", percent(r["grounds"]["ground"]), of["ground"]),
        ("two things that never met: both", "50 %", percent(r["two"]["concept"]), of["both of two concepts"]),
        ("RMS between seeds / between captions", "0.33",
         f"{v['ratio']:.2f} ({v['between_seeds']:.0f} / {v['between_captions']:.0f} of 255)", ""),
        ("three styles or more among eight seeds", "",
         f"{percent(v['three_styles'])}; {v['mean_styles']:.1f} in the mean", ""),
        ("autoencoder: PSNR, new drawings on white", "27 dB", decibels(a["one thing on white"]), ""),
        ("autoencoder: PSNR, new drawings in all scenes", "", decibels(a["all kinds of scenes"]), ""),
        ("posterior's largest spread on plain colours, noise, cuttings", "0.5", f"{spread:.2f}", ""),
        ("own thing's drawing nearest of all; among five", "",
         f"{percent(found['nearest'])}; {percent(found['among_five'])}", ""),
        ("Fréchet distance, judge's features", "",
         f"{near['frechet']:.1f} (two halves of the real: {halves_of_real:.1f})", ""),
        ("precision, recall", "", f"{near['precision']:.2f}, {near['recall']:.2f}", ""),
        ("first picture, imports included", "6 s",
         f"{first['median']:.1f} s (worst of {first['repeats']}: {first['worst']:.1f})", ""),
        ("size of the folder", "48 MB", f"{r['megabytes']:.1f} MB, {r['parameters'] / 1e6:.1f} M parameters", ""),
    ]  # fmt: skip
    lines = [
        "# Bars of the embedded model", "",
        f"{r['concepts']} things; {r['steps']} network calls, guidance {r['guidance']:g}, {r['sampler']}; 95 % "
        "intervals. The last column is how often the judge is right about real pictures of drawings it never saw.", "",
        "| | bar | measured | judge |", "|---|---|---|---|",
        *(f"| {name} | {bar} | {value} | {of} |" for name, bar, value, of in rows),
    ]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="pipeline folder [the embedded model]")
    parser.add_argument("--data", type=Path, required=True, help="a set drawn by `sd-ext train data --packages`")
    parser.add_argument("--scorer", type=Path, default=HERE / "judge", help="folder of the judge")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=None, help="[the model's own]")
    parser.add_argument("--few", action="store_true", help="a quarter of the questions, for a first look")
    parser.add_argument("--name", default="bars", help="name of the result files")
    options = parser.parse_args()

    folder = str(options.model or sd_ext.pretrained_path())
    guidance = options.guidance or read_json(Path(folder) / "words.json", dict[str, Any])["guidance"]
    model, scorer = Model(folder, options.steps, guidance), load_scorer(options.scorer)
    book = read_book(options.data)
    held_out = [row for row in read_rows(options.data) if row["split"] == HELD_OUT]
    questions = Questions(book.drawings, options.few)
    one = [row for row in held_out if row["shows"] == "one"]
    known = {**accuracy(scorer, options.data, held_out), "concept": accuracy(scorer, options.data, one)["concept"]}
    parts = (model.pipe.vae, model.pipe.text_encoder, model.pipe.unet)
    result: dict[str, Any] = {
        "concepts": len(questions.concepts), "steps": options.steps, "guidance": guidance,
        "sampler": type(model.pipe.scheduler).__name__,
        "megabytes": folder_size(Path(folder)) / 1e6,
        "parameters": sum(p.numel() for part in parts for p in part.parameters()),
        "judge": known,
        "first_picture": first_picture(),
        "phrasing": {form: asked_and_drawn(model, scorer, asked, form) for form, asked in questions.phrasing().items()},
        "new phrasings": asked_and_drawn(model, scorer, questions.phrases(), "new phrasings"),
        "style": {style: asked_and_drawn(model, scorer, asked, style) for style, asked in questions.style().items()},
        "pairs": asked_and_drawn(model, scorer, questions.pairs(), "pairs"),
        "counts": {n: asked_and_drawn(model, scorer, asked, f"number {n}") for n, asked in questions.counts().items()},
        "grounds": asked_and_drawn(model, scorer, questions.grounds(), "grounds"),
        "two": asked_and_drawn(model, scorer, questions.two(), "two"),
        "variety": variety(model, scorer, questions.some(questions.concepts, 40)),
        "autoencoder": autoencoder(model.pipe.vae, options.data, held_out),
        "retrieval": retrieval(model, book, questions.hundred),
        "likeness": likeness(model, scorer, options.data, held_out[: 200 if options.few else 1000]),
    }  # fmt: skip
    write(options.name, result, report(result))
    drawn = [(f"seed {seed}", list(model.draw(SHOWN, [seed] * len(SHOWN)))) for seed in range(5)]
    sheet(drawn, SHOWN, left=52).save(RESULTS / f"{options.name}_grid.png")


if __name__ == "__main__":
    main()
