"""Prior preservation (Ruiz et al. 2022, arXiv 2208.12242, section 3.3).

Beside the pictures of the subject ("sks dog"), a run trains on pictures of the subject's class ("dog"), so that the
model does not forget the class. Missing class pictures are drawn by the base model before training.
"""

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
from sd_ext.training.diffusion.prompts import Prompt
from sd_ext.training.diffusion.settings import PreviewSettings
from sd_ext.training.lora.settings import ClassSettings
from sd_ext.training.model.pipeline import make_pipeline
from sd_ext.training.model.text_encoders import TextTowers

OURS = re.compile(r"\d{4,}-[0-9a-f]{12}\.png")  # file names of generated class pictures: seed and digest

log = logging.getLogger(__name__)


def with_class_pictures(settings: ClassSettings, items: list[Item], side: int) -> list[Item]:
    """Add class pictures to the items of the data, so that an epoch has equally many of both.

    Every picture of both sets is in an epoch at least once; those of the smaller set are repeated.

    Args:
        settings: folder, number, caption and loss weight of the class pictures; without a folder none are added.
        items: the items of the data.
        side: height and width in pixels of blank pictures, which stand for class pictures that are not drawn yet.

    Returns:
        The items of the data and of the class, with changed repeats.
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
    """The existing class pictures, at most `class_images`; generated ones that are damaged are left out."""
    folder = Path(settings.class_data)
    files = picture_files(folder) if folder.is_dir() else []
    usable = [path for path in files if not OURS.fullmatch(path.name) or is_whole(path, path.stat().st_mtime_ns)]
    return usable[: settings.class_images]


@cache
def is_whole(path: Path, changed: int) -> bool:
    """Whether a generated class picture is undamaged. If not, logs a warning, once for each state of the file.

    Args:
        path: the file.
        changed: its time of modification in nanoseconds; results are cached by path and time.
    """
    if is_whole_png(path):
        return True
    log.warning("the class picture %s is damaged, and is made anew", path)
    return False


def missing(settings: ClassSettings) -> int:
    """The number of class pictures that are still to be drawn."""
    return settings.class_images - len(class_files(settings)) if settings.class_data else 0


def to_make(settings: ClassSettings) -> list[int]:
    """The seeds of the class pictures that are still to be drawn: the lowest ones that no existing picture has."""
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
    """Draw the missing class pictures with the base model; each process draws a share.

    Each picture is saved as soon as it is drawn, so that none is lost if the run is stopped.

    Args:
        settings: folder, number and prompt of the class pictures.
        previews: guidance scale and number of steps.
        files: the base model.
        state: the processes, and the device.
        dtype: number format of the U-Net.
        side: height and width of the pictures, in pixels.

    Raises:
        WriteError: the disk is full or fails.
        TrainingError: pictures that were just written are damaged or gone.
    """
    numbers = to_make(settings)
    state.wait_for_everyone()  # no process may write before all have counted the missing ones
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
    """Draw a picture of a prompt for each seed with the base model, which is loaded now and freed at the end.

    Args:
        prompt: the prompt.
        seeds: one for each picture.
        previews, files, dtype, side: as for `make_class_pictures`.
        device: the device to draw on.
    """
    towers = TextTowers.load(files).to(device)
    states, negative = (towers(towers.tokenize([text]).to(device)) for text in (prompt, ""))
    vae, unet = files.load("vae").eval().to(device), files.load("unet", dtype).eval().to(device)
    pipe = make_pipeline(vae, unet, files.noise(), None, files)
    for seed in seeds:
        shot = previews.shot(Prompt(prompt, negative_prompt="", seed=seed), 0, side, files.pixels_per_latent)
        yield Image.fromarray(draw(pipe, states, negative, shot))
    del pipe, vae, unet, towers
    if device.type == "cuda":
        torch.cuda.empty_cache()  # else this memory would not count as free when the run is checked to fit
