"""Reads the pictures that the settings name: those to train on, and those held out for validation."""

from __future__ import annotations

from collections.abc import Callable

from sd_ext.errors import InputError
from sd_ext.training.data.buckets import Buckets
from sd_ext.training.data.items import Item
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.data.report import report
from sd_ext.training.data.sources import hold_out, read_items
from sd_ext.training.data.unused import unused_files
from sd_ext.training.diffusion.config import DiffusionConfig


def open_pictures(
    config: DiffusionConfig, scale: int, complete: Callable[[list[Item]], list[Item]] = lambda items: items
) -> tuple[Pictures, Pictures | None]:
    """Read the samples of a run. Pictures that are left out are printed with the reason.

    Args:
        config: the settings.
        scale: pixels per latent, in height and in width.
        complete: called with the items to train on, returns them with others added, such as class pictures.

    Returns:
        (samples to train on, held-out samples or None).

    Raises:
        InputError: there are no pictures, or none can be used.
    """
    data, held_out = config.data, config.held_out
    items, others = read_items(data.data, data.split, folder_repeats=data.folder_repeats), []
    if held_out.validation_share:
        items, others = hold_out(items, held_out.validation_share)
    elif held_out.validation_data:
        others = read_items(held_out.validation_data, "all", folder_repeats=data.folder_repeats)
    elif held_out.validation_split:
        others = read_items(data.data, held_out.validation_split, folder_repeats=data.folder_repeats)
    pictures = _pictures(complete(items), config, scale, config.pictures.crop, config.pictures.repeats)
    validation = _pictures(others, config, scale, "center", 1) if others else None
    report(pictures, unused_files(data.data, data.split, [*items, *others]))
    if validation:
        unused = unused_files(held_out.validation_data, "all", others) if held_out.validation_data else {}
        report(validation, unused, "held-out data")
    return pictures, validation


def _pictures(items: list[Item], config: DiffusionConfig, scale: int, crop: str, repeats: int) -> Pictures:
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
    )
