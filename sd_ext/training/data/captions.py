"""Caption augmentation: tags shuffled, tags left out, a prefix such as a trigger word in front.

A variant's text depends on (caption, seed, number) only, so that all variants can be encoded and cached before
training.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from sd_ext.errors import InputError


@dataclass(frozen=True)
class CaptionTricks:
    """How captions are augmented.

    Args:
        shuffle: put the tags in random order.
        tag_dropout: probability that a tag is left out.
        keep_tokens: how many leading tags stay in place and are never left out.
        separator: the text between two tags.
        prefix: put, with a space, before every caption and variant; it stays in place and is never left out.

    Raises:
        InputError: `tag_dropout` is outside [0, 1], `keep_tokens` is negative, or the separator is empty.
    """

    shuffle: bool = False
    tag_dropout: float = 0.0
    keep_tokens: int = 0
    separator: str = ","
    prefix: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.tag_dropout <= 1:
            raise InputError(f"tag_dropout is {self.tag_dropout}; it must be from 0 to 1")
        if self.keep_tokens < 0:
            raise InputError(f"keep_tokens is {self.keep_tokens}; it must be 0 or more")
        if not self.separator:
            raise InputError("the separator of tags is empty; give what is between two tags, such as ','")

    @property
    def active(self) -> bool:
        """Whether variants of a caption may differ."""
        return self.shuffle or self.tag_dropout > 0

    def variant(self, caption: str, seed: int, number: int) -> str:
        """Variant `number` of a caption. If neither shuffling nor dropout is on, only the prefix is added."""
        if self.active:
            caption = self._varied(caption, seed, number)
        return " ".join(part for part in (self.prefix.strip(), caption) if part)

    def variants(self, caption: str, seed: int, count: int) -> list[str]:
        """Variants 0, ..., count - 1; a single one if neither shuffling nor dropout is on."""
        return [self.variant(caption, seed, number) for number in range(count if self.active else 1)]

    def _varied(self, caption: str, seed: int, number: int) -> str:
        tags = [tag.strip() for tag in caption.split(self.separator) if tag.strip()]
        kept, rest = tags[: self.keep_tokens], tags[self.keep_tokens :]
        words = np.frombuffer(hashlib.sha256(caption.encode()).digest(), np.uint32)
        draw = np.random.default_rng([seed, number, *words.tolist()])
        left = [tag for tag, value in zip(rest, draw.random(len(rest)), strict=True) if value >= self.tag_dropout]
        if self.shuffle:
            left = [left[i] for i in draw.permutation(len(left))]
        join = self.separator if self.separator != self.separator.strip() else f"{self.separator.strip()} "
        return join.join(kept + left)
