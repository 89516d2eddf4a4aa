"""Does a trained pipeline draw what its captions say?

    python benchmarks/bars.py [--model FOLDER] [--data FOLDER] [--steps 20] [--guidance 1.5] [--captions N] [--name X]

Three questions, on the glyph set (rendered again if no --data is given):
- the autoencoder: PSNR of its reconstructions of all glyphs;
- the training captions: one picture each (seed = its place in the set); is its own glyph the nearest of all glyphs, or
  among the five nearest? The distance is made of two hand-made descriptions, neither the model's own: a 16 x 16
  thumbnail in CIELAB, and histograms of oriented gradients; each is divided by the median distance between two glyphs,
  and the two are added. Plain pixels are reported beside it;
- the held-out captions, eight seeds each: the same, and whether colour and shape, measured apart, are right.
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
from PIL import Image, ImageDraw, ImageFont
from skimage.color import rgb2gray, rgb2lab
from skimage.feature import hog

import sd_ext
from sd_ext.training.data.images import to_uint8
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.data.sources import read_items
from sd_ext.training.model.pipeline import folder_size
from sd_ext.training.sets.glyphs import write_imagefolder

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "white")
SHAPES = ("heart", "circle", "square")
SEEDS = 8
SHOWN = ("red apple", "grinning face", "tiger face", "rocket", "hamburger", "umbrella", "octopus", "guitar", "cactus",
         "police car", "yellow star", "red heart", "penguin", "sunflower", "key", "snowman")  # fmt: skip


class Descriptions:
    """Distances from pictures to a fixed set of pictures, (count, height, width, 3) uint8."""

    def __init__(self, pictures: np.ndarray):
        self.known = [self.describe(pictures, kind) for kind in ("lab", "hog", "pixels")]
        self.typical = [np.median(distances(d, d)[np.triu_indices(len(d), 1)]) for d in self.known]

    @staticmethod
    def describe(pictures: np.ndarray, kind: str) -> np.ndarray:
        if kind == "pixels":
            return pictures.reshape(len(pictures), -1).astype(np.float32)
        if kind == "lab":
            small = [np.asarray(Image.fromarray(p).resize((16, 16), Image.Resampling.BOX)) for p in pictures]
            return rgb2lab(np.stack(small)).reshape(len(pictures), -1).astype(np.float32)
        sixty_four = [rgb2gray(np.asarray(Image.fromarray(p).resize((64, 64), Image.Resampling.BOX))) for p in pictures]
        return np.stack([hog(p, pixels_per_cell=(8, 8), cells_per_block=(2, 2)) for p in sixty_four]).astype(np.float32)

    def to(self, pictures: np.ndarray) -> dict[str, np.ndarray]:
        """(pictures, known) distances: "features" (thumbnail + gradients) and "pixels"."""
        lab, gradients, pixels = (
            distances(self.describe(pictures, kind), known) / typical
            for kind, known, typical in zip(("lab", "hog", "pixels"), self.known, self.typical, strict=True)
        )
        return {"features": lab + gradients, "pixels": pixels}


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances of all pairs of rows."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


def ranks(distance: np.ndarray, own: np.ndarray) -> np.ndarray:
    """How many known pictures are nearer than one's own."""
    return (distance < distance[np.arange(len(own)), own][:, None]).sum(1)


def shares(rank: np.ndarray) -> dict[str, float]:
    return {"top_1": float((rank < 1).mean()), "top_5": float((rank < 5).mean())}


def generate(pipe: Any, captions: list[str], seeds: list[int], steps: int, guidance: float, size: int) -> np.ndarray:
    """Pictures (captions, size, size, 3) uint8."""
    parts = []
    for start in range(0, len(captions), 64):
        some = slice(start, start + 64)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[some]]
        images = pipe(
            captions[some], num_inference_steps=steps, guidance_scale=guidance, generator=generators,
            height=size, width=size, output_type="pt",
        ).images  # fmt: skip
        parts.append(to_uint8(images * 2 - 1))
        print(f"\r{min(start + 64, len(captions))}/{len(captions)}", end="", flush=True)
    print()
    return np.concatenate(parts)


def count_calls(pipe: Any, caption: str, steps: int, guidance: float, size: int) -> int:
    """Network calls one picture takes (guidance counts as one: both halves go in one batch)."""
    calls: list[int] = []
    hook = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    pipe([caption], num_inference_steps=steps, guidance_scale=guidance, height=size, width=size, output_type="latent")
    hook.remove()
    return len(calls)


@torch.no_grad()
def reconstruct(vae: Any, pictures: Pictures) -> tuple[np.ndarray, np.ndarray]:
    """(decoded pictures uint8, mean squared error of each in [-1, 1])."""
    decoded, errors = [], []
    for start in range(0, len(pictures), 64):
        pixels = torch.stack([pictures.pixels(i) for i in range(start, min(start + 64, len(pictures)))])
        out = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
        decoded.append(to_uint8(out))
        errors.append((out - pixels).square().mean((1, 2, 3)).numpy())
    return np.concatenate(decoded), np.concatenate(errors)


def ink(pictures: np.ndarray) -> np.ndarray:
    """Where pictures differ from white by more than 12 in CIELAB: (count, height, width) bool."""
    lab = rgb2lab(pictures)
    return np.linalg.norm(lab - np.array([100.0, 0, 0]), axis=-1) > 12


def mean_colour(pictures: np.ndarray) -> np.ndarray:
    """Median CIELAB colour of the ink: (count, 3); white where there is none."""
    lab, mask = rgb2lab(pictures), ink(pictures)
    return np.stack([np.median(c[m], axis=0) if m.any() else (100.0, 0, 0) for c, m in zip(lab, mask, strict=True)])


def colour_and_shape(pictures: np.ndarray, named: dict[str, np.ndarray]) -> list[tuple[str, str]]:
    """The nearest colour name by the ink's median colour, and shape by the overlap of ink, of each picture.

    References are the glyphs: all coloured hearts, circles and squares.
    """
    colours = [c for c in COLOURS if c != "white"]  # a white shape on white is its outline
    references = {c: mean_colour(np.stack([named[f"{c} {s}"] for s in SHAPES])).mean(0) for c in colours}
    outlines = {s: np.mean([ink(named[f"{c} {s}"][None])[0] for c in colours], axis=0) > 0.5 for s in SHAPES}
    found = []
    for colour, mask in zip(mean_colour(pictures), ink(pictures), strict=True):
        nearest = min(references, key=lambda name: np.linalg.norm(references[name] - colour))
        overlap = {s: (mask & o).sum() / max(1, (mask | o).sum()) for s, o in outlines.items()}
        found.append((nearest, max(overlap, key=overlap.__getitem__)))
    return found


def sheet(
    rows: list[tuple[str, list[np.ndarray]]], captions: list[str], scale: int = 1, left: int = 110
) -> Image.Image:
    """Rows of pictures with a name on the left, which `left` pixels are for, and captions above."""
    size = rows[0][1][0].shape[0] * scale
    top, gap = 30, 4
    canvas = Image.new("RGB", (left + len(captions) * (size + gap), top + len(rows) * (size + gap)), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(11)
    for i, caption in enumerate(captions):
        words = caption.split()
        text = caption if len(words) < 2 else " ".join(words[:-1]) + "\n" + words[-1]
        pen.multiline_text((left + i * (size + gap) + 2, 1), text, fill="black", font=font, spacing=1)
    for r, (name, pictures) in enumerate(rows):
        y = top + r * (size + gap)
        pen.text((2, y + size // 2 - 6), name, fill="black", font=font)
        for i, picture in enumerate(pictures):
            tile = Image.fromarray(picture).resize((size, size), Image.Resampling.NEAREST)
            canvas.paste(tile, (left + i * (size + gap), y))
    return canvas


def stack(*sheets: Image.Image) -> Image.Image:
    canvas = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), "white")
    y = 0
    for part in sheets:
        canvas.paste(part, (0, y))
        y += part.height
    return canvas


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="pipeline folder [the embedded model]")
    parser.add_argument("--data", default=None, help="folder of the glyph set [rendered anew]")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.5)
    parser.add_argument("--captions", type=int, default=0, help="only this many training captions, evenly spread")
    parser.add_argument("--name", default="bars", help="name of the result files")
    options = parser.parse_args()

    from diffusers import StableDiffusionPipeline

    if not options.data:
        options.data = str(Path(tempfile.mkdtemp()) / "glyphs")
        write_imagefolder(options.data)
    folder = options.model or sd_ext.pretrained_path()
    pipe: Any = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    size = pipe.vae.config.sample_size
    pictures = Pictures(options.data, size)
    glyphs = to_uint8(torch.stack([pictures.pixels(i) for i in range(len(pictures))]))
    named = dict(zip(pictures.captions, glyphs, strict=True))
    place = {caption: i for i, caption in enumerate(pictures.captions)}
    training = [item.caption for item in read_items(options.data, "train")]
    held_out = [item.caption for item in read_items(options.data, "held_out")]
    if options.captions:
        training = training[:: max(1, len(training) // options.captions)][: options.captions]

    known = Descriptions(glyphs)
    decoded, errors = reconstruct(pipe.vae, pictures)
    psnr = 10 * np.log10(4 / errors)
    calls = count_calls(pipe, training[0], options.steps, options.guidance, size)

    started = time.perf_counter()
    seeds = [place[caption] for caption in training]
    drawn = generate(pipe, training, seeds, options.steps, options.guidance, size)
    seconds = (time.perf_counter() - started) / len(training)
    own = np.array(seeds)
    far = known.to(drawn)
    features, train_rank = far["features"], {kind: ranks(distance, own) for kind, distance in far.items()}
    likeness = 10 * np.log10(255**2 / ((drawn.astype(float) - glyphs[own]) ** 2).mean((1, 2, 3)))
    control = ranks(known.to(decoded)["features"], np.arange(len(pictures)))

    repeated = [caption for caption in held_out for _ in range(SEEDS)]
    drawn_out = generate(pipe, repeated, list(range(SEEDS)) * len(held_out), options.steps, options.guidance, size)
    out_rank = ranks(known.to(drawn_out)["features"], np.array([place[c] for c in repeated]))
    seen = colour_and_shape(drawn_out, named)
    colour_right = np.array([a == c.split()[0] for (a, _), c in zip(seen, repeated, strict=True)])
    shape_right = np.array([b == c.split()[1] for (_, b), c in zip(seen, repeated, strict=True)])

    result = {
        "model": "embedded" if not options.model else options.model,
        "megabytes": folder_size(Path(folder)) / 1e6,
        "parameters": sum(p.numel() for part in (pipe.vae, pipe.text_encoder, pipe.unet) for p in part.parameters()),
        "glyphs": len(pictures),
        "network_calls": calls,
        "guidance": options.guidance,
        "sampler": type(pipe.scheduler).__name__,
        "psnr_mean_of_pictures": float(psnr.mean()),
        "psnr_pooled": float(10 * np.log10(4 / errors.mean())),
        "psnr_worst": float(psnr.min()),
        "training_captions": len(training),
        "training": shares(train_rank["features"]),
        "training_distance": float(features[np.arange(len(own)), own].mean()),
        "generated_psnr": float(likeness.mean()),
        "training_by_pixels": shares(train_rank["pixels"]),
        "reconstructions_as_control": shares(control),
        "seconds_per_picture": seconds,
        "held_out": {
            "captions": held_out,
            "seeds": SEEDS,
            **shares(out_rank),
            "colour_right": float(colour_right.mean()),
            "shape_right": float(shape_right.mean()),
            "both_right": float((colour_right & shape_right).mean()),
            "top_1_by_caption": {
                c: float((out_rank[i * SEEDS : (i + 1) * SEEDS] < 1).mean()) for i, c in enumerate(held_out)
            },
        },
        "missed": [c for c, r in zip(training, train_rank["features"], strict=True) if r >= 5][:40],
    }
    write(options.name, result, report(result))

    shown = [c for c in SHOWN if c in place]
    again = generate(pipe, shown, [place[c] for c in shown], options.steps, options.guidance, size)
    scale = max(1, 64 // size)
    train_sheet = sheet(
        [
            ("glyph", [named[c] for c in shown]),
            ("reconstruction", [decoded[place[c]] for c in shown]),
            ("generated", list(again)),
        ],
        shown,
        scale,
    )
    rows = [("glyph", [named[c] for c in held_out])]
    rows += [(f"held out, seed {s}", [drawn_out[i * SEEDS + s] for i in range(len(held_out))]) for s in range(3)]
    picture = stack(train_sheet, sheet(rows, held_out, scale))
    picture.save(RESULTS / f"{options.name}_grid.png")


def report(r: dict[str, Any]) -> str:
    """The result as Markdown."""
    out = r["held_out"]

    def percent(share: float) -> str:
        return f"{100 * share:.1f} %"

    rows = [
        ("size of the folder", "24 MB", "24 MB", f"{r['megabytes']:.1f} MB, {r['parameters'] / 1e6:.1f} M parameters"),
        ("reconstruction PSNR, mean over glyphs", "23 dB", "27 dB", f"{r['psnr_mean_of_pictures']:.2f} dB"),
        ("reconstruction PSNR, pooled error", "", "", f"{r['psnr_pooled']:.2f} dB"),
        ("training captions, nearest glyph is its own", "60 %", "85 %", percent(r["training"]["top_1"])),
        ("training captions, own glyph in nearest five", "80 %", "95 %", percent(r["training"]["top_5"])),
        ("generated picture against its glyph, mean PSNR", "", "", f"{r['generated_psnr']:.2f} dB"),
        ("the same by plain pixels, nearest", "", "", percent(r["training_by_pixels"]["top_1"])),
        ("the same by plain pixels, nearest five", "", "", percent(r["training_by_pixels"]["top_5"])),
        ("control: reconstructions, nearest", "", "", percent(r["reconstructions_as_control"]["top_1"])),
        ("held-out captions, nearest glyph is its own", "", "", percent(out["top_1"])),
        ("held-out captions, own glyph in nearest five", "", "", percent(out["top_5"])),
        ("held-out captions, colour right", "", "", percent(out["colour_right"])),
        ("held-out captions, shape right", "", "", percent(out["shape_right"])),
        ("held-out captions, colour and shape right", "", "", percent(out["both_right"])),
    ]
    lines = [
        "# Bars of the trained model",
        "",
        f"{r['glyphs']} glyphs, {r['training_captions']} training captions with one seed each, {len(out['captions'])} "
        f"held-out captions with {out['seeds']} seeds each; {r['network_calls']} network calls, guidance "
        f"{r['guidance']:g}, {r['sampler']}; {r['seconds_per_picture']:.2f} s a picture.",
        "",
        "| | bar (CPU recipe) | bar (GPU recipe) | measured |",
        "|---|---|---|---|",
        *(f"| {name} | {cpu} | {gpu} | {value} |" for name, cpu, gpu, value in rows),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
