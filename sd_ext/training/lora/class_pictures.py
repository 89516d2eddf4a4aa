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
from sd_ext.training.data import Item
from sd_ext.training.data.folders import picture_files
from sd_ext.training.data.items import FileReader
from sd_ext.training.model.files import ModelFiles
from sd_ext.training.run.previews import is_whole_png
from sd_ext.training.settings import LoraConfig

OURS = re.compile(r"\d{4,}-[0-9a-f]{12}\.png")  # number, which is the seed too, and digest

log = logging.getLogger(__name__)


def with_class_pictures(config: LoraConfig, items: list[Item]) -> list[Item]:
    """Items with as many class pictures beside them.

    An epoch holds every picture of both; those of the smaller set come again and again, as often as it takes. Pictures
    that are still to be made are blank.
    """
    if not config.class_data:
        return items
    there = class_files(config)
    readers = [(path.name, FileReader(path, within=Path(config.class_data))) for path in there]
    readers += [("still to be made", _blank(config.resolution[0]))] * (config.class_images - len(there))
    own = sum(item.repeats for item in items)
    times = max(1, -(-len(readers) // max(1, own)))
    each, more = divmod(own * times, len(readers))
    beside = [
        Item(f"class picture {name}", read, config.class_prompt, None, each + (n < more), config.prior_weight, True)
        for n, (name, read) in enumerate(readers)
    ]
    return [*(replace(item, repeats=item.repeats * times) for item in items), *beside]


def _blank(side: int) -> Any:
    file = io.BytesIO()
    Image.new("RGB", (side, side), "white").save(file, "PNG")
    return file.getvalue


def class_files(config: LoraConfig) -> list[Path]:
    """The class pictures that are there, at most as many as wanted; damaged ones of our making are left out."""
    folder = Path(config.class_data)
    files = picture_files(folder) if folder.is_dir() else []
    return [path for path in files if not OURS.fullmatch(path.name) or is_whole(path, path.stat().st_mtime_ns)][
        : config.class_images
    ]


@cache
def is_whole(path: Path, changed: int) -> bool:
    """Whether a class picture of our making is undamaged. Says so where it is not, once for each time of change."""
    if is_whole_png(path):
        return True
    log.warning("the class picture %s is damaged, and is made anew", path)
    return False


def missing(config: LoraConfig) -> int:
    """How many class pictures are still to be made."""
    return config.class_images - len(class_files(config)) if config.class_data else 0


def to_make(config: LoraConfig) -> list[int]:
    """Numbers, which are seeds too, of the pictures still to be made: the first that no picture there has."""
    taken = {int(found[0]) for path in class_files(config) if (found := re.match(r"\d+", path.name))}
    free = (number for number in range(config.class_images + len(taken)) if number not in taken)
    return [number for number, _ in zip(free, range(missing(config)), strict=False)]


def make_class_pictures(config: LoraConfig, files: ModelFiles, state: PartialState, dtype: torch.dtype) -> None:
    """Draw what is missing with the base model, each process a share.

    A picture appears whole, and is kept if the run is stopped.

    Raises:
        WriteError: the disk is full or fails.
        TrainingError: what was written is not there.
    """
    numbers = to_make(config)
    state.wait_for_everyone()  # until all have counted
    if not numbers:
        return
    folder = Path(config.class_data)
    mine = numbers[state.process_index :: state.num_processes]
    shown = track(mine, "class pictures", console=Console(stderr=True), disable=not state.is_main_process)
    for number, picture in zip(shown, drawn(config, files, state, dtype, mine), strict=True):
        name = hashlib.sha256(picture.tobytes()).hexdigest()[:12]
        with whole.file(folder / f"{number:04d}-{name}.png") as new:
            picture.save(new)
    state.wait_for_everyone()
    if count := missing(config):
        raise TrainingError(
            f"{count} class pictures in {folder} are damaged or gone as soon as they were made; see to that disk, and "
            "start again"
        )


@torch.no_grad()
def drawn(
    config: LoraConfig, files: ModelFiles, state: PartialState, dtype: torch.dtype, seeds: list[int]
) -> Iterator[Image.Image]:
    """Pictures of the class by the base model, one for each seed; the model is gone afterwards."""
    from sd_ext.training.model.pipeline import make_pipeline
    from sd_ext.training.model.text_encoders import TextTowers
    from sd_ext.training.run.previews import draw

    device = state.device
    towers = TextTowers.load(files).to(device)
    told, negative = (towers(towers.tokenize([text]).to(device)) for text in (config.class_prompt, ""))
    vae, unet = files.load("vae").eval().to(device), files.load("unet", dtype).eval().to(device)
    pipe = make_pipeline(vae, unet, files.noise(), None, files.family)
    for seed in seeds:
        yield Image.fromarray(draw(pipe, told, negative, seed, config))
    del pipe, vae, unet, towers
    if device.type == "cuda":
        torch.cuda.empty_cache()  # or the run would seem not to fit
