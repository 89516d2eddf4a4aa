"""The pictures of the other end: for each sample of the data one of the same name and size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath

from sd_ext.errors import InputError
from sd_ext.training.data.items import Item
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.data.sources import read_items
from sd_ext.training.diffusion.config import DiffusionConfig
from sd_ext.training.diffusion.samples import pictures_of

NAMED = 3  # pictures without a partner that the message names


def partners(pictures: Pictures, source: str, config: DiffusionConfig, scale: int) -> Pictures:
    """The samples that go with those of the data, one for each, in the same order.

    Args:
        pictures: the samples of the data.
        source: the pictures of the other end. Their names are those of the data, but for the ending.
        config: all settings.
        scale: pixels per latent.

    Raises:
        InputError: a picture has no partner, or one of another size, or one that cannot be used.
    """
    there = {_stem(item): item for item in read_items(source, "all")}
    used = list({id(sample.item): sample.item for sample in pictures.samples}.values())
    if lost := [item.name for item in used if _stem(item) not in there]:
        raise InputError(f"{source} has no picture to go with {_few(lost)}; pairs have the same names")
    items = [
        replace(there[_stem(item)], flip=item.flip, repeats=item.repeats, weight=item.weight, caption=item.caption)
        for item in used
    ]
    made = pictures_of(items, config, scale, config.pictures.crop, config.pictures.repeats)
    if made.problems:
        raise InputError(f"{source}: of its pictures some cannot be used: {_few(made.skipped)}")
    if made.sizes != pictures.sizes:
        both = zip(made.samples, made.sizes, pictures.sizes, strict=False)
        name = next((sample.item.name for sample, size, wanted in both if size != wanted), "some")
        raise InputError(f"{source}: {name} is not of the size of its partner; pairs have the same proportions")
    return made


def _stem(item: Item) -> str:
    return PurePath(item.name).with_suffix("").as_posix()


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more}"
