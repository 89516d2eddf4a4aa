"""Textual inversion: new words, whose embedding vectors are trained (Gal et al. 2022, arXiv 2208.01618).

Trained together with a LoRA, this is called pivotal tuning (Roich et al. 2021, arXiv 2106.05744).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from sd_ext.errors import InputError
from sd_ext.training.model.chunked import NewWords
from sd_ext.training.model.text_encoders import TextTowers


class Words(nn.Module):
    """A token embedding with additional rows for new words; only the additional rows are trained.

    Called with token ids (..., n), it returns vectors (..., n, d).

    Args:
        known: the text encoder's embedding, (vocabulary, d).
        vectors: initial values of the additional rows, (new words, d).
    """

    def __init__(self, known: nn.Embedding, vectors: Tensor):
        super().__init__()
        self.known, self.vectors = known, nn.Parameter(vectors.float())

    @property
    def weight(self) -> Tensor:
        """The table of the known words, (vocabulary, d)."""
        return self.known.weight

    def forward(self, ids: Tensor) -> Tensor:
        there = self.known.num_embeddings
        old = self.known(ids.clamp(max=there - 1))
        new = self.vectors[(ids - there).clamp(min=0)].to(old.dtype)
        return torch.where((ids >= there)[..., None], new, old)


def names_of(token: str, vectors: int) -> list[str]:
    """The vocabulary entries of a new word with several vectors, named as in Diffusers: <toy>, <toy>_1, ..."""
    return [token, *(f"{token}_{number}" for number in range(1, vectors))]


def spell_out(text: str, tokens: Sequence[str], vectors: int) -> str:
    """Replace each new word in a text by its vocabulary entries, as Diffusers does: "<toy>" -> "<toy> <toy>_1".

    Args:
        text: the text.
        tokens: the new words.
        vectors: how many vectors each has.
    """
    for token in tokens:
        text = text.replace(token, " ".join(names_of(token, vectors)))
    return text


def add_words(towers: TextTowers, tokens: Sequence[str], vectors: int, init: str) -> list[Words]:
    """Add new words to all text encoders and their tokenizers, in place.

    Args:
        towers: the text encoders.
        tokens: the new words.
        vectors: how many vectors each has.
        init: a known word whose vector is the initial value; "" for the mean of all vectors.

    Returns:
        The new embedding table of each text encoder.

    Raises:
        InputError: a new word is in the vocabulary already, or `init` is not a single token.
    """
    made = []
    for number, (name, tokenizer) in enumerate(zip(towers.names, towers.tokenizers, strict=True)):
        encoder: Any = towers.encoders[name]
        known = encoder.get_input_embeddings()
        words = [word for token in tokens for word in names_of(token, vectors)]
        if taken := [word for word in words if word in tokenizer.get_vocab()]:
            raise InputError(f"the tokenizer knows {taken[0]!r} already; choose another token")
        start = _start(tokenizer, known.weight.detach().float(), init)
        there = len(tokenizer)
        if there != known.num_embeddings:
            raise InputError(f"the tokenizer has {there} words, the text encoder {known.num_embeddings}")
        tokenizer.add_tokens(words)
        towers.words[number] = NewWords(there, vectors)
        table = Words(known, start.repeat(len(words), 1))
        encoder.set_input_embeddings(table)
        made.append(table)
    return made


def _start(tokenizer: Any, table: Tensor, init: str) -> Tensor:
    if not init:
        return table.mean(0)
    ids = tokenizer(init, add_special_tokens=False).input_ids
    if len(ids) != 1:
        raise InputError(f"token_init {init!r} is {len(ids)} tokens; give a word that is a single one")
    return table[ids[0]]


def embeddings(table: Words, tokens: Sequence[str], vectors: int) -> dict[str, Tensor]:
    """The trained vectors of each new word, in the form that `load_textual_inversion` reads.

    Args:
        table: the trained table.
        tokens: the new words, in the order in which they were added.
        vectors: how many vectors each has.

    Returns:
        New word -> (vectors, d) float32, on the CPU.
    """
    parts = table.vectors.detach().float().cpu().split(vectors)
    return {token: part.contiguous() for token, part in zip(tokens, parts, strict=True)}


KEYS = ("clip_l", "clip_g")  # of SDXL's two text encoders, in files of words that other programs read


def file_names(tokens: Sequence[str]) -> dict[str, str]:
    """New word -> the name of its file in `embeddings/`, without ending, as A1111 and ComfyUI have it written."""
    names: dict[str, str] = {}
    for token in tokens:
        plain = re.sub(r"[^\w.-]+", "", token).strip(".") or "word"
        taken = {name.lower() for name in names.values()}
        names[token] = next(
            name for number in count(1) if (name := plain if number == 1 else f"{plain}-{number}").lower() not in taken
        )
    return names


def in_one_file(tables: Sequence[Words], tokens: Sequence[str], vectors: int) -> dict[str, dict[str, Tensor]]:
    """Each new word as other programs read it: a file for all text encoders, named like the word.

    Args:
        tables: the trained table of each text encoder.
        tokens, vectors: as for `embeddings`.

    Returns:
        New word -> (vectors, d) tensors by key: "emb_params" for one text encoder, "clip_l" and "clip_g" for SDXL's.
    """
    keys = KEYS if len(tables) > 1 else ("emb_params",)
    made = {key: embeddings(table, tokens, vectors) for key, table in zip(keys, tables, strict=True)}
    return {token: {key: own[token] for key, own in made.items()} for token in tokens}
