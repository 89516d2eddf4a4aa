"""All texts that a run may show its model: every caption, and the other ways in which it may be said."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

from sd_ext.training.data.captions import CaptionTricks
from sd_ext.training.data.phrases import rephrasings
from sd_ext.training.data.settings import CaptionSettings


def outside_training(settings: CaptionSettings, caption: str) -> str:
    """A caption as previews and validation show it to the model: with the prefix, and no tricks."""
    return CaptionTricks(prefix=settings.prefix).variant(caption, 0, 0)


def texts_of(
    settings: CaptionSettings,
    seed: int,
    captions: Sequence[str],
    exact: Sequence[bool] | None = None,
    rephrase: float = 0.0,
) -> tuple[list[list[int]], list[str]]:
    """The texts that each sample may be shown with.

    Args:
        settings: what is done to captions.
        seed: of the run.
        captions: of the samples.
        exact: for each sample, whether its caption is used as it is: no prefix, no tricks. None for no sample.
        rephrase: the share of captions said in another way.

    Returns:
        (choices, texts): `texts` are all texts, each once; `choices[i]` are the indices in `texts` that sample i draws
        from. An index listed twice is twice as likely.
    """
    indices: dict[str, int] = {}
    pairs = list(zip(captions, exact or [False] * len(captions), strict=True))
    choices = {}
    for caption, as_it_is in dict.fromkeys(pairs):
        texts = [caption] if as_it_is else wordings(settings, seed, caption, set(captions), rephrase)
        choices[caption, as_it_is] = [indices.setdefault(text, len(indices)) for text in texts]
    return [choices[pair] for pair in pairs], list(indices)


def wordings(
    settings: CaptionSettings, seed: int, caption: str, captions: set[str], rephrase: float = 0.0
) -> list[str]:
    """The texts that a caption may become; each is as likely as it is listed often.

    Args:
        settings, seed, rephrase: see `texts_of`.
        caption: the one.
        captions: of all pictures. A rephrasing that is some other picture's caption is left out: "dog" for "dog face".
    """
    tricks = CaptionTricks(
        settings.shuffle_tags, settings.tag_dropout, settings.keep_tokens, settings.tag_separator, settings.prefix
    )
    variants = tricks.variants(caption, seed, settings.caption_variants)
    others = [phrase for phrase in rephrasings(caption) if phrase not in captions] if rephrase else []
    if not others:
        return variants
    share = Fraction(rephrase).limit_denominator(100)  # of the list that is a rephrasing, exactly
    return variants * ((share.denominator - share.numerator) * len(others)) + others * (share.numerator * len(variants))
