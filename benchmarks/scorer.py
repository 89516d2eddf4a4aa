"""Trains the judge of pictures: which thing, style, colour, number and ground a picture shows.

    sd-ext train data --packages npm --fetch --out data --pictures 60000
    python benchmarks/scorer.py data --out scorer

It learns from the drawn pictures, and is not the model it judges: it sees every pair of colour and thing and every
composition, which a model must not, but none of the drawings that are held out. On those, each a concept of a set whose
drawing it never saw, and on a whole style it never saw, its own accuracy is measured; a score of a model says little
where the judge itself errs. The folder `scorer` holds `scorer.safetensors` and `scorer.json`, its labels and accuracy;
`load_scorer(folder)` reads it, `judge(scorer, pictures)` uses it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _report import write
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sd_ext import whole
from sd_ext.errors import InputError
from sd_ext.reading import read_json, read_json_lines

SIDE = 64
HEADS = ("concept", "style", "colour", "number", "ground")
HELD_OUT = "drawings"  # the split it is judged on
AVERAGED = 0.998  # the weights that are kept are a running mean


class Block(nn.Module):
    """Two convolutions around which the picture also goes straight."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.layers(x))


def halved(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU(), Block(after))


class Scorer(nn.Module):
    """Pixels (b, 3, 64, 64) in [-1, 1] -> for each head the logits of its labels (b, labels).

    Args:
        labels: of each head.
    """

    def __init__(self, labels: dict[str, list[str]]):
        super().__init__()
        self.labels = labels
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 5, 2, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.body = nn.Sequential(halved(32, 64), halved(64, 128), Block(128), halved(128, 256))
        self.heads = nn.ModuleDict({name: nn.Linear(256, len(named)) for name, named in labels.items()})

    def features(self, pixels: Tensor) -> Tensor:
        """(b, 256): what precision, recall and FID compare."""
        return self.body(self.stem(pixels)).mean((2, 3))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        seen = self.features(pixels)
        return {name: head(seen) for name, head in self.heads.items()}


# ---- what is learnt --------------------------------------------------------------------------------------------------


def ground_of(row: dict[str, Any]) -> str:
    """How a ground is called: a pale one by that, a coloured one by its colour."""
    return {"tint": "pale", "coloured": row["ground_colour"]}.get(row["ground"], row["ground"])


def truths(row: dict[str, Any]) -> dict[str, list[str]]:
    """What each head should say of a picture: one label, two of two things, or none where nothing is certain."""
    single = row["shows"] in ("one", "several")
    return {
        "concept": list(row["concepts"]),
        "style": [row["style"]] if row["concepts"] else [],
        "colour": [row["colours"][0]] if single and row["colours"][0] else [],
        "number": [str(row["number"])] if single else [],
        "ground": [ground_of(row)],
    }


def read_rows(data: Path) -> list[dict[str, Any]]:
    """The lines of a drawn set.

    Raises:
        InputError: it was not drawn by `sd-ext train data --packages`.
    """
    rows = [row for _, row in read_json_lines(data / "metadata.jsonl", dict[str, Any])]
    if not rows or not {"shows", "concepts", "colours", "number", "style", "ground"} <= set(rows[0]):
        raise InputError(f"{data} was not drawn by `sd-ext train data --packages`: its metadata lacks the facts")
    return rows


def labels_of(rows: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """The labels of each head, sorted."""
    said: dict[str, set[str]] = {name: set() for name in HEADS}
    for row in rows:
        for name, values in truths(row).items():
            said[name].update(values)
    return {name: sorted(values) for name, values in said.items()}


def targets_of(rows: Sequence[dict[str, Any]], labels: dict[str, list[str]]) -> dict[str, Tensor]:
    """For each head the numbers of up to two labels (n, 2), -1 for none."""
    places = {name: {label: i for i, label in enumerate(named)} for name, named in labels.items()}
    made = {name: torch.full((len(rows), 2), -1) for name in labels}
    for i, row in enumerate(rows):
        for name, values in truths(row).items():
            for k, value in enumerate(values[:2]):
                made[name][i, k] = places[name].get(value, -1)
    return made


def read_pictures(data: Path, rows: Sequence[dict[str, Any]]) -> Tensor:
    """(n, 3, 64, 64) uint8."""
    made = np.empty((len(rows), SIDE, SIDE, 3), np.uint8)
    for i, row in enumerate(rows):
        with Image.open(data / row["file_name"]) as picture:
            if picture.size != (SIDE, SIDE):
                raise InputError(f"{row['file_name']} is not {SIDE} x {SIDE}: draw the set with --size {SIDE}")
            made[i] = np.asarray(picture.convert("RGB"))
    return torch.from_numpy(made).permute(0, 3, 1, 2)


def scaled(pictures: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return (pictures.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def loss_of(logits: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor:
    """The mean cross-entropy of each head over what is certain, summed; of two things each counts half."""
    total = torch.zeros(())
    for name, scores in logits.items():
        wanted = targets[name].to(scores.device)
        known = wanted[:, 0] >= 0
        if known.any():
            second = torch.where(wanted[:, 1:] >= 0, wanted[:, 1:], wanted[:, :1])[known, 0]
            scores, first = scores[known].float(), wanted[known, 0]
            total = total + (cross_entropy(scores, first) + cross_entropy(scores, second)) / 2
    return total


def train(scorer: Scorer, pictures: Tensor, targets: dict[str, Tensor], steps: int, batch: int, seed: int) -> None:
    """AdamW, one cycle, bf16; the weights afterwards are a running mean of those of the steps."""
    optimizer = torch.optim.AdamW(scorer.parameters(), 2e-3, weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps, pct_start=0.15)
    mean = {name: value.clone() for name, value in scorer.state_dict().items()}
    random, order, started = torch.Generator().manual_seed(seed), torch.empty(0, dtype=torch.long), time.time()
    scorer.to(memory_format=torch.channels_last).train()
    for step in range(1, steps + 1):
        if len(order) < batch:
            order = torch.randperm(len(pictures), generator=random)
        chosen, order = order[:batch], order[batch:]
        with torch.autocast("cpu", torch.bfloat16):
            logits = scorer(scaled(pictures[chosen]))
        loss = loss_of(logits, {name: value[chosen] for name, value in targets.items()})
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        cycle.step()
        keep = min(AVERAGED, step / (step + 10))
        for name, value in scorer.state_dict().items():
            mean[name].lerp_(value, 1 - keep) if value.is_floating_point() else mean[name].copy_(value)
        if step % 100 == 0 or step == steps:
            print(f"step {step}: loss {loss.item():.3f}, {time.time() - started:.0f} s", flush=True)
    scorer.load_state_dict(mean)
    scorer.eval()


# ---- what it is used for ---------------------------------------------------------------------------------------------


@torch.no_grad()
def judge(scorer: Scorer, pictures: Tensor, batch: int = 256) -> dict[str, Tensor]:
    """Probabilities of each head's labels.

    Args:
        scorer: as `load_scorer` gives it.
        pictures: (n, 3, 64, 64) uint8.

    Returns:
        (n, labels) for each head.
    """
    made = [scorer(scaled(part)) for part in pictures.split(batch)]
    return {name: torch.cat([each[name] for each in made]).softmax(1) for name in scorer.labels}


def load_scorer(folder: Path) -> Scorer:
    """What `main` saved.

    Raises:
        InputError: the folder holds none.
    """
    labels = read_json(folder / "scorer.json", dict[str, Any]).get("labels")
    if not (folder / "scorer.safetensors").is_file() or not labels:
        raise InputError(f"{folder} holds no scorer: run python benchmarks/scorer.py")
    scorer = Scorer(labels)
    scorer.load_state_dict({name: value.float() for name, value in load_file(folder / "scorer.safetensors").items()})
    return scorer.eval()


def interval(right: int, of: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927), in per cent."""
    if not of:
        return 0.0, 100.0
    share, scale = right / of, 1 + z**2 / of
    middle = (share + z**2 / (2 * of)) / scale
    half = z * (share * (1 - share) / of + z**2 / (4 * of**2)) ** 0.5 / scale
    return 100 * (middle - half), 100 * (middle + half)


def right(probabilities: Tensor, targets: Tensor) -> tuple[int, int]:
    """(how often the first answers are right, of how many): of two things both must be among the first two."""
    known = targets[:, 0] >= 0
    two = known & (targets[:, 1] >= 0)
    one = known & ~two
    first = probabilities.argmax(1)
    hits = int((first[one] == targets[one, 0]).sum())
    if two.any():
        best = probabilities[two].topk(2).indices.sort(1).values
        hits += int((best == targets[two].sort(1).values).all(1).sum())
    return hits, int(known.sum())


def accuracy(scorer: Scorer, data: Path, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each head's accuracy on some pictures, with its interval; of two things apart from one."""
    found = judge(scorer, read_pictures(data, rows))
    targets = targets_of(rows, scorer.labels)
    two = torch.tensor([len(row["concepts"]) == 2 for row in rows])
    asked = {name: (found[name], targets[name]) for name in scorer.labels}
    asked["concept"] = (found["concept"][~two], targets["concept"][~two])
    asked["both of two concepts"] = (found["concept"][two], targets["concept"][two])
    counted = {name: right(*each) for name, each in asked.items()}
    return {
        name: {"right": hits, "of": of, "percent": 100 * hits / max(of, 1), "interval": interval(hits, of)}
        for name, (hits, of) in counted.items()
    }


def new_style(data: Path) -> list[dict[str, Any]]:
    """The drawings of the style that is held out, as rows; pictures are read on white."""
    lines = [row for _, row in read_json_lines(data / "drawings" / "metadata.jsonl", dict[str, Any])]
    return [row for row in lines if row["split"] == "style"]


def style_accuracy(scorer: Scorer, data: Path) -> dict[str, Any]:
    """How often the concept of a drawing of the new style is found."""
    rows = new_style(data)
    pictures = np.empty((len(rows), SIDE, SIDE, 3), np.uint8)
    for i, row in enumerate(rows):
        with Image.open(data / "drawings" / row["file_name"]) as drawing:
            white = Image.new("RGBA", drawing.size, "white")
            white.alpha_composite(drawing.convert("RGBA"))
            pictures[i] = np.asarray(white.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS))
    found = judge(scorer, torch.from_numpy(pictures).permute(0, 3, 1, 2))["concept"].argmax(1).tolist()
    hits = sum(scorer.labels["concept"][number] == row["concept"] for number, row in zip(found, rows, strict=True))
    of = len(rows)
    return {"right": hits, "of": of, "percent": 100 * hits / max(of, 1), "interval": interval(hits, of)}


def measure(scorer: Scorer, data: Path, held_out: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The scorer's accuracy where it has not learnt: new drawings, and a new style."""
    made = {f"{name}, new drawings": each for name, each in accuracy(scorer, data, held_out).items()}
    plain = [r for r in held_out if r["shows"] == "one" and r["style"] not in ("silhouette", "pixels")]
    made["concept, new drawings, one thing, neither silhouette nor pixel art"] = accuracy(scorer, data, plain)[
        "concept"
    ]
    made["concept, a style it never saw"] = style_accuracy(scorer, data)
    return made


def save(scorer: Scorer, out: Path, about: dict[str, Any]) -> None:
    """The weights in float16, and what is known of them."""
    weights = {name: value.contiguous() for name, value in scorer.state_dict().items()}
    small = {name: value.half() if value.is_floating_point() else value for name, value in weights.items()}
    with whole.folder(out, overwrite=True) as new:
        save_file(small, new / "scorer.safetensors")
        (new / "scorer.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def table(measured: dict[str, dict[str, Any]]) -> str:
    rows = ["| | right | 95 % interval | of |", "|---|---|---|---|"]
    for name, each in measured.items():
        low, high = each["interval"]
        rows.append(f"| {name} | {each['percent']:.1f} % | {low:.1f} to {high:.1f} % | {each['of']} |")
    return "\n".join(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a set drawn by `sd-ext train data --packages`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the scorer")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", action="store_true", help="write benchmarks/results/scorer.md and .json")
    given = parser.parse_args(arguments)
    rows = read_rows(given.data)
    learnt, held_out = ([r for r in rows if (r["split"] == HELD_OUT) == wanted] for wanted in (False, True))
    if not learnt or not held_out:
        raise InputError(f"{given.data} has {len(learnt)} pictures to learn and {len(held_out)} to judge by: draw more")
    torch.manual_seed(given.seed)
    scorer = Scorer(labels_of(learnt))
    size = sum(p.numel() for p in scorer.parameters()) / 1e6
    print(f"{size:.2f} M parameters, {len(learnt)} pictures, {len(held_out)} held out", flush=True)
    started = time.time()
    pictures, targets = read_pictures(given.data, learnt), targets_of(learnt, scorer.labels)
    train(scorer, pictures, targets, given.steps, given.batch, given.seed)
    seconds = time.time() - started
    measured = measure(scorer, given.data, held_out)
    about = {
        "labels": scorer.labels, "accuracy": measured, "steps": given.steps, "batch": given.batch, "seed": given.seed,
        "pictures": len(learnt), "seconds": seconds, "parameters": round(1e6 * size),
    }  # fmt: skip
    save(scorer, given.out, about)
    text = (
        f"# The judge of pictures, judged\n\n{size:.2f} M parameters, {given.steps} steps of {given.batch} of "
        f"{len(learnt)} pictures, {seconds:.0f} s. Judged by {len(held_out)} pictures, each with a drawing of which no "
        f"picture was seen in training.\n\n{table(measured)}"
    )
    if given.report:
        write("scorer", {name: value for name, value in about.items() if name != "labels"}, text)
    else:
        print(text)


if __name__ == "__main__":
    main()
