"""Textual inversion: words the text encoders do not know, as trained vectors (Gal et al. 2022, arXiv 2208.01618).

Trained together with a LoRA it is pivotal tuning (Roich et al. 2021, arXiv 2106.05744).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sd_ext.errors import InputError
from sd_ext.training.model.text_encoders import TextTowers


class Words(nn.Module):
    """An embedding table with new rows below it; only those are trained.

    Args:
        known: the table (words, d).
        vectors: the new rows (n, d).
    """

    def __init__(self, known: nn.Embedding, vectors: Tensor):
        super().__init__()
        self.known, self.vectors = known, nn.Parameter(vectors.float())

    @property
    def weight(self) -> Tensor:
        return self.known.weight

    def forward(self, ids: Tensor) -> Tensor:
        count = self.known.num_embeddings
        old = self.known(ids.clamp(max=count - 1))
        new = self.vectors[(ids - count).clamp(min=0)].to(old.dtype)
        return torch.where((ids >= count)[..., None], new, old)


def names_of(token: str, vectors: int) -> list[str]:
    """The words of a token of several vectors: <toy>, <toy>_1, ... as Diffusers calls them."""
    return [token, *(f"{token}_{number}" for number in range(1, vectors))]


def spell_out(text: str, tokens: Sequence[str], vectors: int) -> str:
    """A text with each token followed by its further words, as Diffusers does when it loads them."""
    for token in tokens:
        text = text.replace(token, " ".join(names_of(token, vectors)))
    return text


def add_words(towers: TextTowers, tokens: Sequence[str], vectors: int, init: str) -> list[Words]:
    """Give all towers new words, which start from a known one (or from the mean of all).

    Raises:
        InputError: a token is known already, or the word to start from is not one token.
    """
    made = []
    for name, tokenizer in zip(towers.names, towers.tokenizers, strict=True):
        encoder: Any = towers.encoders[name]
        known = encoder.get_input_embeddings()
        words = [word for token in tokens for word in names_of(token, vectors)]
        if taken := [word for word in words if word in tokenizer.get_vocab()]:
            raise InputError(f"the tokenizer knows {taken[0]!r} already; choose another token")
        start = _start(tokenizer, known.weight.detach().float(), init)
        count = len(tokenizer)
        if count != known.num_embeddings:
            raise InputError(f"the tokenizer has {count} words, the text encoder {known.num_embeddings}")
        tokenizer.add_tokens(words)
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
    """Each token's vectors (vectors, d), as `load_textual_inversion` takes them."""
    parts = table.vectors.detach().float().cpu().split(vectors)
    return {token: part.contiguous() for token, part in zip(tokens, parts, strict=True)}
