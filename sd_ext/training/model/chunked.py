"""Texts of more tokens than a text encoder reads at once: cut into chunks as `sd_ext.prompts` cuts prompts.

Each chunk has a beginning and an end of its own and is filled up; their states are put one after the other. So a LoRA
is trained on what AUTOMATIC1111, ComfyUI and `sd_ext.encode_prompt` make of a long prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sd_ext.prompts.chunks import cut
from sd_ext.prompts.encoders import comma_of

NONE = 2**62  # a number that no token has


class NewWords(NamedTuple):
    """The entries that a tokenizer was given for new words, whose vectors stay in one chunk.

    Args:
        first: number of the first; all later ones are such entries too.
        vectors: how many each word has.
    """

    first: int = NONE
    vectors: int = 1


KNOWN = NewWords()  # of a tokenizer without new words


class Length(NamedTuple):
    """How long a text is.

    Args:
        tokens: without those of beginning and end.
        chunks: how many it takes to read all of them.
        kept: how many of them are read.
    """

    tokens: int
    chunks: int
    kept: int


def room(tokenizer: Any) -> int:
    """How many tokens of a text a chunk holds: 75 of CLIP's 77."""
    return tokenizer.model_max_length - 2


def chunks_of(tokenizer: Any, ids: Sequence[int], words: NewWords = KNOWN) -> list[list[int]]:
    """Cut tokens into chunks; at least one, which may be empty.

    Raises:
        InputError: a new word has more vectors than a chunk holds.
    """
    units: list[list[int]] = []
    for number in ids:
        if number >= words.first and (number - words.first) % words.vectors and units:
            units[-1].append(number)
        else:
            units.append([number])
    made = cut([[(unit, 1.0) for unit in units]], room(tokenizer), comma_of(tokenizer))
    return [list(chunk.tokens) for chunk in made]  # type: ignore[arg-type]


def tokenize(tokenizer: Any, texts: Sequence[str], chunks: int, words: NewWords = KNOWN) -> Tensor:
    """The token ids of texts in chunks: (texts, chunks x model_max_length). What is left over is cut off."""
    rows = []
    for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids:
        found = chunks_of(tokenizer, ids, words)[:chunks]
        row: list[int] = []
        for chunk in [*found, *[[]] * (chunks - len(found))]:
            filled = [tokenizer.bos_token_id, *chunk, tokenizer.eos_token_id]
            row += filled + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(filled))
        rows.append(row)
    return torch.tensor(rows)


def lengths(tokenizer: Any, texts: Sequence[str], chunks: int) -> list[Length]:
    """How long texts are, and how much of them is read in so many chunks."""
    if not texts:
        return []
    most, found = room(tokenizer), []
    for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids:
        parts = [len(ids)] if len(ids) <= most else [len(chunk) for chunk in chunks_of(tokenizer, ids)]
        found.append(Length(len(ids), len(parts), min(len(ids), most) if chunks == 1 else sum(parts[:chunks])))
    return found


def told(texts: Sequence[str], found: Sequence[Length], chunks: int, most: int) -> tuple[str, str]:
    """What to say of the lengths of texts.

    Args:
        texts: the texts.
        found: their lengths.
        chunks: in how many chunks they are read.
        most: how many tokens a chunk holds.

    Returns:
        (how they are read, "" for one chunk; what is cut off, "" for nothing).
    """
    long = sum(each.tokens > most for each in found)
    read = f"read in {chunks} chunks of {most} tokens; {long} of {len(found)} have more than one" if chunks > 1 else ""
    lost = [text for text, each in zip(texts, found, strict=True) if each.kept < each.tokens]
    if not lost:
        return read, ""
    needed = max(each.chunks for each in found)
    after = f"{most} tokens" if chunks == 1 else f"{chunks} chunks"
    return read, f"{len(lost)} of {len(found)} are cut off after {after}, e.g. {lost[0][:60]!r}; " + (
        f"caption_chunks = {needed} reads all"
    )
