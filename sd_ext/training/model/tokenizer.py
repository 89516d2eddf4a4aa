"""Trains a CLIP tokenizer on captions: lower case, byte-level byte-pair encoding, so any text can be tokenized."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
# How CLIP splits text before pairs are merged (Radford et al. 2021, arXiv 2103.00020, released code).
SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def train_tokenizer(captions: Iterable[str], vocabulary: int, tokens: int) -> Any:
    """Train a CLIP tokenizer.

    Entries of the vocabulary are ordered as in CLIP: bytes, bytes that end a word, merges, start, end. Unknown words
    are split into pieces, if need be into single bytes.

    Args:
        captions: the texts to train on.
        vocabulary: most entries of the vocabulary; more if all single bytes need more.
        tokens: length of a tokenized text, with start and end.

    Returns:
        A `transformers.CLIPTokenizer`.
    """
    raw = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    raw.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=max(vocabulary, len(alphabet)),
        initial_alphabet=alphabet, end_of_word_suffix=WORD_END, show_progress=False,
    )  # fmt: skip
    raw.train_from_iterator(sorted(captions), trainer)
    room = max(0, vocabulary - 2 * len(alphabet) - 2)
    merges: list[Any] = [tuple(merge) for merge in json.loads(raw.to_str())["model"]["merges"]][:room]
    endings = [letter + WORD_END for letter in alphabet]
    entries = [*alphabet, *endings, *("".join(merge) for merge in merges), START, END]
    vocab = {entry: number for number, entry in enumerate(dict.fromkeys(entries))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=tokens)


def save_tokenizer(tokenizer: Any, new: Path) -> None:
    """Save a tokenizer into a folder; also as vocab.json and merges.txt, which older versions of Transformers read."""
    tokenizer.save_pretrained(new)
    tokenizer.backend_tokenizer.model.save(str(new))
