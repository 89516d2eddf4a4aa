"""Reads the pictures that the settings name: those to train on, and those held out for validation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sd_ext.errors import InputError
from sd_ext.training.data.buckets import Buckets
from sd_ext.training.data.items import Item
from sd_ext.training.data.known import Known
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.data.report import report
from sd_ext.training.data.several import DataSet, balanced, overlaps_noted, read_set
from sd_ext.training.data.sources import hold_out, read_items
from sd_ext.training.data.unused import unused_files
from sd_ext.training.diffusion.config import DiffusionConfig

log = logging.getLogger(__name__)

SCALE = 8  # pixels per latent of every model of Stable Diffusion that is published


@dataclass
class Gathered:
    """The pictures that the settings of a run name.

    Args:
        pictures: the samples to train on.
        held_out: the samples to validate with; None for no validation.
        unused: the files of the data that are neither, with the reasons.
        held_out_unused: the same of `validation_data`.
        masks_act: whether masks weigh the loss.
    """

    pictures: Pictures
    held_out: Pictures | None
    unused: dict[str, str]
    held_out_unused: dict[str, str]
    masks_act: bool = False

    def report(self) -> None:
        """Print totals, and what is left out, not used or changed."""
        report(self.pictures, self.unused)
        if self.pictures.masked and not self.masks_act:
            log.warning("there are masks, which act only with masked_loss = true")
        if self.held_out:
            report(self.held_out, self.held_out_unused, "held-out data")


def gather(
    config: DiffusionConfig,
    scale: int,
    complete: Callable[[list[Item]], list[Item]] = lambda items: items,
    known: Known | None = None,
) -> Gathered:
    """Read the samples of a run.

    Args:
        config: the settings.
        scale: pixels per latent, in height and in width.
        complete: called with the items to train on, returns them with others added, such as class pictures.
        known: what is known of files that have not changed.

    Raises:
        InputError: there are no pictures, or none can be used.
    """
    data, held_out = config.data, config.held_out
    sets = data.sets or (DataSet(data.data, data.split),)
    items, others = _read(config, sets), []
    if held_out.validation_share:
        items, others = hold_out(items, held_out.validation_share)
    elif held_out.validation_data:
        others = read_items(held_out.validation_data, "all", folder_repeats=data.folder_repeats)
    elif held_out.validation_split:
        others = _read(config, [replace(each, split=held_out.validation_split) for each in sets])
    others = [replace(item, flip=False) for item in others]
    trained = balanced(items) if data.balance else items
    pictures = pictures_of(complete(trained), config, scale, config.pictures.crop, config.pictures.repeats, known)
    validation = pictures_of(others, config, scale, "center", 1, known) if others else None
    return Gathered(
        pictures,
        validation,
        _unused(config, sets, [*items, *others]),
        unused_files(held_out.validation_data, "all", others) if held_out.validation_data else {},
        config.loss.masked_loss,
    )


def _read(config: DiffusionConfig, sets: Sequence[DataSet]) -> list[Item]:
    """The items of the data; with several sets, those of all, and pictures that belong to two are noted."""
    data = config.data
    if data.sets:
        return overlaps_noted([item for each in sets for item in read_set(each, data.flip, data.folder_repeats)])
    found = read_items(sets[0].data, sets[0].split, folder_repeats=data.folder_repeats)
    return [replace(item, flip=data.flip) for item in found]


def _unused(config: DiffusionConfig, sets: Sequence[DataSet], items: list[Item]) -> dict[str, str]:
    """The files that no item is read from; with several sets, names begin with that of the set."""
    if not config.data.sets:
        return unused_files(sets[0].data, sets[0].split, items)
    return {
        f"{each.data}/{name}": why for each in sets for name, why in unused_files(each.data, each.split, items).items()
    }


def pictures_of(
    items: list[Item], config: DiffusionConfig, scale: int, crop: str, repeats: int, known: Known | None = None
) -> Pictures:
    """The samples of items, as the settings say."""
    sizes = config.pictures
    step = sizes.bucket_step if sizes.buckets else scale
    if step % scale:
        raise InputError(f"bucket_step is {step}; it must be a multiple of {scale}, the pixels of one latent")
    return Pictures(
        items,
        Buckets(sizes.resolution, step, sizes.bucket_ratio, sizes.buckets, sizes.upscale),
        min_size=sizes.min_size,
        captionless=config.captions.captionless,
        caption=config.captions.instance_prompt,
        crop=crop,
        repeats=repeats,
        alpha_mask=config.loss.masked_loss,
        keep=not config.cache.cache,
        known=known,
    )


def check_before_hub(
    config: DiffusionConfig, complete: Callable[[list[Item]], list[Item]] = lambda items: items
) -> None:
    """Check the data of a run whose model is on the Hub, so that nothing is downloaded for data that cannot be used.

    Arguments and errors as for `gather`.
    """
    if on_hub(config.base.model):
        gather(config, SCALE, complete)


def on_hub(model: str) -> bool:
    """Whether a model is asked for on the Hub: it is neither the embedded one nor here."""
    return bool(model) and model != "embedded" and not Path(model).expanduser().exists()
