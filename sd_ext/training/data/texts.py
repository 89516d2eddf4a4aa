"""All texts that a run may show its model: every caption, its augmented variants and its rephrasings."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from sd_ext.training.data.captions import CaptionTricks
from sd_ext.training.data.items import Item
from sd_ext.training.data.phrases import rephrasings
from sd_ext.training.data.pictures import Pictures
from sd_ext.training.data.settings import CaptionSettings


def outside_training(settings: CaptionSettings, item: Item, caption: str) -> str:
    """A caption as previews and validation use it: with the prefix, but without shuffling or dropout of tags."""
    return CaptionTricks(prefix=own_settings(settings, item).prefix).variant(caption, 0, 0)


def own_settings(settings: CaptionSettings, item: Item) -> CaptionSettings:
    """The settings of captions for one picture, whose data set may have a prefix of its own."""
    return settings if item.prefix is None else settings.change(prefix=item.prefix)


def texts_of_pictures(
    settings: CaptionSettings, seed: int, pictures: Pictures, rephrase: float = 0.0
) -> tuple[list[list[int]], list[str]]:
    """`texts_of` for the samples of a run."""
    items = [sample.item for sample in pictures.samples]
    prefixes = [settings.prefix if item.prefix is None else item.prefix for item in items]
    return texts_of(settings, seed, pictures.several, [item.prior for item in items], rephrase, prefixes)


def texts_of(
    settings: CaptionSettings,
    seed: int,
    captions: Sequence[str | tuple[str, ...]],
    exact: Sequence[bool] | None = None,
    rephrase: float = 0.0,
    prefixes: Sequence[str] | None = None,
) -> tuple[list[list[int]], list[str]]:
    """The texts that each sample may be paired with.

    Args:
        settings: prefix and augmentation of captions.
        seed: the run's seed.
        captions: the caption of each sample, or several to choose from.
        exact: for each sample, whether its caption is used unchanged, without prefix and augmentation; None if no
            sample's is.
        rephrase: probability that a sample gets a rephrased caption, from 0 to 1.
        prefixes: what is put before each sample's captions; None for the settings' prefix.

    Returns:
        (choices, texts): `texts` are all texts, each once; sample i draws one of the indices `choices[i]` into `texts`.
        An index that is listed twice is twice as likely.
    """
    indices: dict[str, int] = {}
    several = [(each,) if isinstance(each, str) else each for each in captions]
    known = {caption for each in several for caption in each}
    many = len(captions)
    kinds = list(zip(several, exact or [False] * many, prefixes or [settings.prefix] * many, strict=True))
    choices = {}
    for kind in dict.fromkeys(kinds):
        each, as_it_is, prefix = kind
        own = settings.change(prefix=prefix)
        texts = list(each) if as_it_is else [t for c in each for t in wordings(own, seed, c, known, rephrase)]
        choices[kind] = [indices.setdefault(text, len(indices)) for text in texts]
    return [choices[kind] for kind in kinds], list(indices)


def wordings(
    settings: CaptionSettings, seed: int, caption: str, captions: set[str], rephrase: float = 0.0
) -> list[str]:
    """All texts that one caption may be replaced by. A text that is listed twice is twice as likely.

    Args:
        settings, seed, rephrase: see `texts_of`.
        caption: the caption.
        captions: the captions of all pictures. A rephrasing that is the caption of some picture is left out: "dog"
            is no rephrasing of "dog face" if another picture is called "dog".
    """
    tricks = CaptionTricks(
        settings.shuffle_tags, settings.tag_dropout, settings.keep_tokens, settings.tag_separator, settings.prefix
    )
    variants = tricks.variants(caption, seed, settings.caption_variants)
    others = [phrase for phrase in rephrasings(caption) if phrase not in captions] if rephrase else []
    if not others:
        return variants
    share = Fraction(rephrase).limit_denominator(100)  # the list has exactly this share of rephrasings
    return variants * ((share.denominator - share.numerator) * len(others)) + others * (share.numerator * len(variants))
