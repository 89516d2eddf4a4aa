"""From settings to samples: which pictures are trained on, which are held out, and what is said about each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction

from sd_ext.errors import InputError
from sd_ext.training.data import Buckets, CaptionTricks, Item, Pictures, hold_out, read_items
from sd_ext.training.data.phrases import rephrasings
from sd_ext.training.data.pictures import report_broken
from sd_ext.training.settings import DiffusionConfig


def open_pictures(
    config: DiffusionConfig, scale: int, complete: Callable[[list[Item]], list[Item]] = lambda items: items
) -> tuple[Pictures, Pictures | None]:
    """(samples, held-out samples or None); says which pictures were left out, and why.

    Args:
        config: the settings.
        scale: pixels per latent.
        complete: from the items of `config.data` to all that is trained on, such as with class pictures beside them.
    """
    items, held_out = read_items(config.data, config.split), []
    if config.validation_share:
        items, held_out = hold_out(items, config.validation_share)
    elif config.validation_data:
        held_out = read_items(config.validation_data, "all")
    elif config.validation_split:
        held_out = read_items(config.data, config.validation_split)
    pictures = _pictures(complete(items), config, scale, config.crop, config.repeats)
    return pictures, _pictures(held_out, config, scale, "center", 1) if held_out else None


def _pictures(items: list[Item], config: DiffusionConfig, scale: int, crop: str, repeats: int) -> Pictures:
    step = config.bucket_step if config.buckets else scale
    if step % scale:
        raise InputError(f"bucket_step is {step}; it must be a multiple of {scale}, the pixels of one latent")
    buckets = Buckets(config.resolution, step, config.bucket_ratio, config.buckets, config.upscale)
    pictures = Pictures(
        items, buckets, min_size=config.min_size, captionless=config.captionless, caption=config.instance_prompt,
        crop=crop, repeats=repeats, alpha_mask=config.masked_loss, keep=not config.cache,
    )  # fmt: skip
    report_broken(pictures)
    return pictures


def tricks(config: DiffusionConfig) -> CaptionTricks:
    """What is done to captions."""
    return CaptionTricks(
        config.shuffle_tags, config.tag_dropout, config.keep_tokens, config.tag_separator, config.prefix
    )


def plain(config: DiffusionConfig, caption: str) -> str:
    """A caption as it is shown to the model outside training."""
    return CaptionTricks(prefix=config.prefix).variant(caption, 0, 0)


def texts_of(
    config: DiffusionConfig, captions: Sequence[str], exact: Sequence[bool] | None = None
) -> tuple[list[list[int]], list[str]]:
    """(for each sample the numbers of its texts, all texts): one text, or several where captions are varied.

    Each text of a sample is as likely as it is listed often. Captions that are `exact` are used as they are: no prefix,
    no tricks.
    """
    numbers: dict[str, int] = {}
    said = list(zip(captions, exact or [False] * len(captions), strict=True))
    variants = {(c, as_is): [c] if as_is else wordings(config, c, set(captions)) for c, as_is in dict.fromkeys(said)}
    choices = {pair: [numbers.setdefault(text, len(numbers)) for text in texts] for pair, texts in variants.items()}
    return [choices[pair] for pair in said], list(numbers)


def wordings(config: DiffusionConfig, caption: str, taken: set[str]) -> list[str]:
    """The texts a caption may become."""
    made = tricks(config).variants(caption, config.seed, config.caption_variants)
    share = getattr(config, "rephrase", 0.0)
    others = [p for p in rephrasings(caption) if p not in taken] if share else []  # else it is another's caption
    if not others:
        return made
    part = Fraction(share).limit_denominator(100)
    return made * ((part.denominator - part.numerator) * len(others)) + others * (part.numerator * len(made))
