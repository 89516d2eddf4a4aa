"""The command `sd-ext train look`: gathers what a run would train on, looks at it, and writes what there is to see."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track

from sd_ext import whole
from sd_ext.errors import InputError
from sd_ext.models import Model, find_model
from sd_ext.training.data.ahead import read_ahead
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.data.report import groups, remarks, totals
from sd_ext.training.data.texts import texts_of_pictures
from sd_ext.training.diffusion.samples import Gathered, gather
from sd_ext.training.doctor.page import Page, html
from sd_ext.training.doctor.seen import Seen, seen_in
from sd_ext.training.doctor.settings import LookConfig
from sd_ext.training.doctor.shots import Shots, shots_of
from sd_ext.training.doctor.tokens import Pieces, in_pieces
from sd_ext.training.doctor.twins import find_twins, small
from sd_ext.training.lora.new_words import names_of, spell_out
from sd_ext.training.settings.setting import contradiction

PAGE = "look.html"
SCALE = 8  # pixels per latent, where no model is named: that of Stable Diffusion


def run(config: LookConfig) -> str:
    """Look at the data of a run, and write the page. Until it is complete, nothing is written.

    Returns:
        What the command prints: where the page is, or with the setting `json` everything as JSON.

    Raises:
        InputError: there are no pictures, or none can be used; or no such model.
        WriteError: the page cannot be written.
    """
    base, look = config.base, config.look
    model = find_model(base.model, base.variant or None, revision=base.revision or None) if base.model else None
    data = gather(config, model.pixels_per_latent if model else SCALE)
    seen = look_at_texts(config, data.pictures, model)
    if look.first > len(seen):
        raise InputError(f"first is {look.first}, and there are {len(seen)} pictures; give a number up to that")
    shown = range(look.first - 1, min(look.first - 1 + look.shown, len(seen)))
    if look.spread and not model:
        raise contradiction("spread needs model, whose autoencoder is asked")
    path = Path(look.page or ("" if look.json else PAGE))
    shots = look_at_pictures(data.pictures, seen, shown if path.name else range(0))
    if look.spread and model:
        measure_spreads(model, data.pictures, [seen[number] for number in shown])
    if path.name:
        whole.write_text(path, html(page_of(config, data, seen, shown, shots)))
    if look.json:
        return json.dumps(as_json(config, data, seen))
    return f"{path}: {len(shots):,} of {len(seen):,} pictures are shown"


def look_at_texts(config: LookConfig, pictures: Pictures, model: Model | None) -> list[Seen]:
    """What is known of each picture; texts are cut into tokens where a model is named."""
    choices, texts = texts_of_pictures(config.captions, config.loop.seed, pictures)
    pieces: dict[str, Pieces] = {}
    if model:
        tokenizer, words = model.load("tokenizer"), config.words
        tokenizer.add_tokens([each for word in words.tokens for each in names_of(word, words.token_vectors)])
        spelled = [spell_out(text, words.tokens, words.token_vectors) for text in texts]
        pieces = dict(zip(texts, in_pieces(tokenizer, spelled, config.captions.caption_chunks), strict=True))
    return seen_in(pictures, choices, texts, pieces)


def look_at_pictures(pictures: Pictures, seen: Sequence[Seen], shown: range) -> list[Shots]:
    """Compare all pictures with one another, and make the small ones of those that are shown."""

    def read(number: int) -> tuple[np.ndarray, Shots | None]:
        pixels = pictures.pixels(seen[number].views[0].sample)
        return small(pixels), shots_of(pictures, seen[number]) if number in shown else None

    threads, console = min(32, (os.cpu_count() or 1) + 4), Console(stderr=True)
    found = read_ahead((partial(read, number) for number in range(len(seen))), threads, 2 * threads)
    many = [
        *track(found, "comparing pictures", len(seen), console=console, transient=True, disable=not console.is_terminal)
    ]
    for number, twin in find_twins(np.stack([each for each, _ in many])).items():
        first, later = seen[twin.of], seen[number]
        same = pictures.digest(first.views[0].sample) == pictures.digest(later.views[0].sample)
        how = "the same file as" if same else "nearly the mirror image of" if twin.mirrored else "nearly the same as"
        later.twin = f"{how} {first.name}"
    return [shots for _, shots in many if shots]


@torch.no_grad()
def measure_spreads(model: Model, pictures: Pictures, seen: Sequence[Seen]) -> None:
    """Measure how unsure the model's autoencoder is of pictures, into `Seen.spread`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vae: Any = model.load("vae").eval().to(device)
    console = Console(stderr=True)
    for each in track(seen, "encoding pictures", console=console, transient=True, disable=not console.is_terminal):
        posterior = vae.encode(pictures.pixels(each.views[0].sample)[None].to(device)).latent_dist
        each.spread = round(float(posterior.std.max()) * vae.config.scaling_factor, 4)


@dataclass(frozen=True)
class Counted:
    """Numbers of a data set, for the head of the page and for JSON."""

    pictures: int
    samples: int
    sizes: dict[str, int]
    left_out: int
    not_used: int
    nearly_the_same: int
    cut: int | None
    held_out: int


def counted(data: Gathered, seen: Sequence[Seen]) -> Counted:
    """Count what there is; `cut` is None where no model was named."""
    sizes = Counter(f"{width} x {height}" for height, width in data.pictures.sizes)
    known = any(wording.pieces for each in seen for wording in each.wordings)
    return Counted(
        len(seen),
        len(data.pictures),
        dict(sizes.most_common()),
        len(data.pictures.problems),
        len(data.unused),
        sum(bool(each.twin) for each in seen),
        sum(each.cut for each in seen) if known else None,
        len(data.held_out or ()),
    )


def as_json(config: LookConfig, data: Gathered, seen: Sequence[Seen]) -> dict[str, Any]:
    """Everything about the data, as JSON values."""
    return {
        "data": [str(each) for each in config.data.sets] or config.data.data,
        "totals": vars(counted(data, seen)),
        "crop": config.pictures.crop,
        "text_dropout": config.captions.text_dropout,
        "pictures": [each.as_json() for each in seen],
        "left_out": [{"name": name, "why": why} for name, why in data.pictures.problems],
        "not_used": data.unused,
    }


def page_of(config: LookConfig, data: Gathered, seen: Sequence[Seen], shown: range, shots: Sequence[Shots]) -> Page:
    """The contents of the page."""
    return Page(
        title=config.data.named,
        totals=totals(data.pictures, data.unused),
        numbers=tiles(counted(data, seen)),
        sizes=counted(data, seen).sizes,
        rules=rules(config, data),
        remarks=remarks(data.pictures),
        twins=[f"{each.name} is {each.twin}" for each in seen if each.twin],
        cards=[(seen[number], shot) for number, shot in zip(shown, shots, strict=True)],
        first=shown.start + 1,
        of=len(seen),
        left_out=data.pictures.problems,
        unused=data.unused,
        flip=any(each.flip for each in seen),
    )


def tiles(found: Counted) -> dict[str, str]:
    """The numbers at the head of the page."""
    shown = {
        "pictures": found.pictures,
        "samples an epoch": found.samples,
        "sizes": len(found.sizes),
        "near-duplicates": found.nearly_the_same,
        "with captions cut off": found.cut,
        "left out": found.left_out,
        "files not used": found.not_used,
        "held out": found.held_out,
    }
    return {name: f"{number:,}" for name, number in shown.items() if number is not None}


def rules(config: LookConfig, data: Gathered) -> list[str]:
    """What is true of all pictures, in sentences."""
    captions, flips = config.captions, {sample.item.flip for sample in data.pictures.samples}
    said = [
        *(f"{line}." for line in groups(data.pictures)),
        "Each is mirrored half of the times." if flips == {True} else "None is mirrored." if flips == {False} else "",
        "Crops are drawn at random each time; the centre is shown." if config.pictures.crop == "random" else "",
        f"Of the captions, {captions.text_dropout:.0%} are replaced by the empty one." if captions.text_dropout else "",
        f"{len(data.held_out)} pictures are held out for validation." if data.held_out else "",
        "" if config.base.model else "No model is named (model), so texts are not cut into tokens.",
        "Masks weigh the loss." if config.loss.masked_loss else "",
        "There are masks, which act only with masked_loss." * (data.pictures.masked and not config.loss.masked_loss),
    ]
    return [each for each in said if each]
