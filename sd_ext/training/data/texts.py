"""All texts that a run may show its model: every caption, its augmented variants and its rephrasings."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from sd_ext.training.data.captions import CaptionTricks
from sd_ext.training.data.phrases import rephrasings
from sd_ext.training.data.settings import CaptionSettings


def outside_training(settings: CaptionSettings, caption: str) -> str:
    """A caption as previews and validation use it: with the prefix, but without shuffling or dropout of tags."""
    return CaptionTricks(prefix=settings.prefix).variant(caption, 0, 0)


def texts_of(
    settings: CaptionSettings,
    seed: int,
    captions: Sequence[str | tuple[str, ...]],
    exact: Sequence[bool] | None = None,
    rephrase: float = 0.0,
) -> tuple[list[list[int]], list[str]]:
    """The texts that each sample may be paired with.

    Args:
        settings: prefix and augmentation of captions.
        seed: the run's seed.
        captions: the caption of each sample, or several to choose from.
        exact: for each sample, whether its caption is used unchanged, without prefix and augmentation; None if no
            sample's is.
        rephrase: probability that a sample gets a rephrased caption, from 0 to 1.

    Returns:
        (choices, texts): `texts` are all texts, each once; sample i draws one of the indices `choices[i]` into `texts`.
        An index that is listed twice is twice as likely.
    """
    indices: dict[str, int] = {}
    several = [(each,) if isinstance(each, str) else each for each in captions]
    known = {caption for each in several for caption in each}
    pairs = list(zip(several, exact or [False] * len(captions), strict=True))
    choices = {}
    for each, as_it_is in dict.fromkeys(pairs):
        texts = list(each) if as_it_is else [t for c in each for t in wordings(settings, seed, c, known, rephrase)]
        choices[each, as_it_is] = [indices.setdefault(text, len(indices)) for text in texts]
    return [choices[pair] for pair in pairs], list(indices)


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
