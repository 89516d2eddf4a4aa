"""Prior preservation (Ruiz et al. 2022, arXiv 2208.12242, section 3.3): pictures of the class, by the model itself."""

from __future__ import annotations

import hashlib
import io
import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from rich.console import Console
from rich.progress import track

from sd_ext import whole
from sd_ext.errors import TrainingError
from sd_ext.models import Model
from sd_ext.training.data.folders import picture_files
from sd_ext.training.data.images import is_whole_png
from sd_ext.training.data.items import FileReader, Item
from sd_ext.training.diffusion.previews import draw
from sd_ext.training.diffusion.settings import PreviewSettings
from sd_ext.training.lora.settings import ClassSettings
from sd_ext.training.model.pipeline import make_pipeline
from sd_ext.training.model.text_encoders import TextTowers

OURS = re.compile(r"\d{4,}-[0-9a-f]{12}\.png")  # number, which is the seed too, and digest

log = logging.getLogger(__name__)


def with_class_pictures(settings: ClassSettings, items: list[Item], side: int) -> list[Item]:
    """Items with as many class pictures beside them.

    An epoch holds every picture of both; those of the smaller set come again and again, as often as it takes.

    Args:
        settings: where class pictures are, how many there should be, and what they show.
        items: of the data.
        side: in pixels, of the blank pictures that stand for class pictures which are still to be made.
    """
    if not settings.class_data:
        return items
    there = class_files(settings)
    readers = [(path.name, FileReader(path, within=Path(settings.class_data))) for path in there]
    readers += [("still to be made", _blank(side))] * (settings.class_images - len(there))
    learnt = sum(item.repeats for item in items)
    times = max(1, -(-len(readers) // max(1, learnt)))
    each, more = divmod(learnt * times, len(readers))
    beside = [
        Item(
            f"class picture {name}", read, settings.class_prompt, repeats=each + (n < more),
            weight=settings.prior_weight, prior=True,
        )
        for n, (name, read) in enumerate(readers)
    ]  # fmt: skip
    return [*(replace(item, repeats=item.repeats * times) for item in items), *beside]


def _blank(side: int) -> Any:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "white").save(file, "PNG")
    return file.getvalue


def class_files(settings: ClassSettings) -> list[Path]:
    """The class pictures that are there, at most as many as wanted; damaged ones of our making are left out."""
    folder = Path(settings.class_data)
    files = picture_files(folder) if folder.is_dir() else []
    usable = [path for path in files if not OURS.fullmatch(path.name) or is_whole(path, path.stat().st_mtime_ns)]
    return usable[: settings.class_images]


@cache
def is_whole(path: Path, changed: int) -> bool:
    """Whether a class picture of our making is undamaged. Says so where it is not, once for each time of change."""
    if is_whole_png(path):
        return True
    log.warning("the class picture %s is damaged, and is made anew", path)
    return False


def missing(settings: ClassSettings) -> int:
    """How many class pictures are still to be made."""
    return settings.class_images - len(class_files(settings)) if settings.class_data else 0


def to_make(settings: ClassSettings) -> list[int]:
    """Numbers, which are seeds too, of the pictures still to be made: the first that no picture there has."""
    taken = {int(found[0]) for path in class_files(settings) if (found := re.match(r"\d+", path.name))}
    free = (number for number in range(settings.class_images + len(taken)) if number not in taken)
    return [number for number, _ in zip(free, range(missing(settings)), strict=False)]


def make_class_pictures(
    settings: ClassSettings,
    previews: PreviewSettings,
    files: Model,
    state: PartialState,
    dtype: torch.dtype,
    side: int,
) -> None:
    """Draw what is missing with the base model, each process a share.

    A picture appears whole, and is kept if the run is stopped.

    Args:
        settings: where, how many, and what they show.
        previews: how pictures are drawn.
        files: of the base model.
        state: the processes, and their device.
        dtype: that the U-Net computes in.
        side: height and width in pixels.

    Raises:
        WriteError: the disk is full or fails.
        TrainingError: what was written is not there.
    """
    numbers = to_make(settings)
    state.wait_for_everyone()  # until all have counted
    if not numbers:
        return
    folder = Path(settings.class_data)
    mine = numbers[state.process_index :: state.num_processes]
    shown = track(mine, "class pictures", console=Console(stderr=True), disable=not state.is_main_process)
    pictures = drawn(settings.class_prompt, mine, previews, files, state.device, dtype, side)
    for number, picture in zip(shown, pictures, strict=True):
        name = hashlib.sha256(picture.tobytes()).hexdigest()[:12]
        with whole.file(folder / f"{number:04d}-{name}.png") as new:
            picture.save(new)
    state.wait_for_everyone()
    if count := missing(settings):
        raise TrainingError(
            f"{count} class pictures in {folder} are damaged or gone as soon as they were made; see to that disk, and "
            "start again"
        )


@torch.no_grad()
def drawn(
    prompt: str,
    seeds: list[int],
    previews: PreviewSettings,
    files: Model,
    device: torch.device,
    dtype: torch.dtype,
    side: int,
) -> Iterator[Image.Image]:
    """Pictures of a prompt by the base model, one for each seed; the model is gone afterwards."""
    towers = TextTowers.load(files).to(device)
    states, negative = (towers(towers.tokenize([text]).to(device)) for text in (prompt, ""))
    vae, unet = files.load("vae").eval().to(device), files.load("unet", dtype).eval().to(device)
    pipe = make_pipeline(vae, unet, files.noise(), None, files)
    for seed in seeds:
        yield Image.fromarray(draw(pipe, states, negative, seed, side, previews))
    del pipe, vae, unet, towers
    if device.type == "cuda":
        torch.cuda.empty_cache()  # or the run would seem not to fit
