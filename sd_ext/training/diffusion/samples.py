"""From settings to samples: which pictures are trained on, and which are held out."""

from __future__ import annotations

from collections.abc import Callable

from sd_ext.errors import InputError
from sd_ext.training.data.buckets import Buckets
from sd_ext.training.data.items import Item
from sd_ext.training.data.pictures import Pictures, report_broken
from sd_ext.training.data.sources import hold_out, read_items
from sd_ext.training.diffusion.config import DiffusionConfig


def open_pictures(
    config: DiffusionConfig, scale: int, complete: Callable[[list[Item]], list[Item]] = lambda items: items
) -> tuple[Pictures, Pictures | None]:
    """The samples of a run; says which pictures were left out, and why.

    Args:
        config: the settings.
        scale: pixels per latent, in height and in width.
        complete: from the items of the data to all that is trained on, such as with class pictures beside them.

    Returns:
        (samples to train on, held-out samples or None).

    Raises:
        InputError: no pictures there, or none that can be used.
    """
    data, held_out = config.data, config.held_out
    items, others = read_items(data.data, data.split), []
    if held_out.validation_share:
        items, others = hold_out(items, held_out.validation_share)
    elif held_out.validation_data:
        others = read_items(held_out.validation_data, "all")
    elif held_out.validation_split:
        others = read_items(data.data, held_out.validation_split)
    pictures = _pictures(complete(items), config, scale, config.pictures.crop, config.pictures.repeats)
    return pictures, _pictures(others, config, scale, "center", 1) if others else None


def _pictures(items: list[Item], config: DiffusionConfig, scale: int, crop: str, repeats: int) -> Pictures:
    sizes = config.pictures
    step = sizes.bucket_step if sizes.buckets else scale
    if step % scale:
        raise InputError(f"bucket_step is {step}; it must be a multiple of {scale}, the pixels of one latent")
    pictures = Pictures(
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
    report_broken(pictures)
    return pictures
