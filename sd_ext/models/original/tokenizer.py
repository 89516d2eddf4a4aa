"""CLIP's tokenizer, from its vocabulary in clip/merges.txt.gz (see clip/LICENSE.txt). No network is needed.

The vocabulary follows from the merges (Radford et al. 2021, arXiv 2103.00020, released code): the 256 byte symbols, the
same at the end of a word, every merge, and the two entries that begin and end a text: 49,408 in all.
"""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Any

from ...plain_files import open_file

MERGES = Path(__file__).with_name("clip") / "merges.txt.gz"
BEGIN, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
LENGTH = 77  # tokens of a text, with begin and end
PADDING = {"clip": END, "open_clip": "!"}


@cache
def vocabulary() -> tuple[dict[str, int], tuple[str, ...]]:
    """CLIP's vocabulary: (entry -> number, merges as "left right" in their order)."""
    with open_file(MERGES) as file:
        merges = tuple(gzip.decompress(file.read()).decode().splitlines())
    symbols = _byte_symbols()
    entries = [*symbols, *(symbol + WORD_END for symbol in symbols), *(merge.replace(" ", "") for merge in merges)]
    return {entry: number for number, entry in enumerate([*entries, BEGIN, END])}, merges


def _byte_symbols() -> list[str]:
    """A printable character for each of the 256 bytes, those that are printable themselves first."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [*map(chr, printable), *(chr(256 + number) for number in range(256 - len(printable)))]


def tokenizer_config(style: str) -> dict[str, Any]:
    """The config of a tokenizer, as in tokenizer_config.json.

    Args:
        style: "clip" pads with the end token, "open_clip" with "!", entry 0.
    """
    return {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": LENGTH,
        "bos_token": BEGIN,
        "eos_token": END,
        "unk_token": END,
        "pad_token": PADDING[style],
    }


def make_tokenizer(style: str) -> Any:
    """A `transformers.CLIPTokenizer`; `style`: see `tokenizer_config`."""
    from transformers import CLIPTokenizer

    vocab, merges = vocabulary()
    options = {name: value for name, value in tokenizer_config(style).items() if name != "tokenizer_class"}
    pairs: Any = [tuple(merge.split(" ")) for merge in merges]  # as transformers 5 takes them
    return CLIPTokenizer(vocab=dict(vocab), merges=pairs, **options)


def tokenizer_files(style: str) -> dict[str, Any]:
    """The files of a tokenizer's folder: name -> text, or an object to write as JSON."""
    vocab, merges = vocabulary()
    config = tokenizer_config(style)
    special = {name: value for name, value in config.items() if name.endswith("_token")}
    return {
        "vocab.json": vocab,
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
        "tokenizer_config.json": config,
        "special_tokens_map.json": special,
    }
