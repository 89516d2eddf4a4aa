"""A text as the tokenizer cuts it up, and where it ends because the text encoder reads no further."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sd_ext.training.model.chunked import lengths

AT_ONCE = 1000  # texts that are given to the tokenizer in one call


@dataclass(frozen=True)
class Pieces:
    """A text in tokens.

    Args:
        tokens: all of them, without those of beginning and end.
        kept: how many of them the text encoder reads; those after them are cut off.
    """

    tokens: tuple[str, ...]
    kept: int

    @property
    def cut(self) -> tuple[str, ...]:
        """The tokens that are cut off."""
        return self.tokens[self.kept :]


def in_pieces(tokenizer: Any, texts: Sequence[str], chunks: int = 1) -> list[Pieces]:
    """Cut texts into tokens.

    Args:
        tokenizer: of a text encoder.
        texts: the texts, as they are given to it.
        chunks: in how many chunks it reads them.
    """
    found = []
    for start in range(0, len(texts), AT_ONCE):
        part = list(texts[start : start + AT_ONCE])
        kept = [each.kept for each in lengths(tokenizer, part, chunks)]
        many = tokenizer(part, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast, verbose=False)
        for number, text in enumerate(part):
            if tokenizer.is_fast:
                tokens = [text[a:b] for a, b in many["offset_mapping"][number]]
            else:
                tokens = [
                    each.removesuffix("</w>") for each in tokenizer.convert_ids_to_tokens(many["input_ids"][number])
                ]
            found.append(Pieces(tuple(tokens), kept[number]))
    return found
