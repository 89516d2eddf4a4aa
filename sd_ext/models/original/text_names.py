"""The modules of a text encoder, as transformers and as the original files call them.

Files of CLIP-L have transformers' own names, with or without `text_model.`. Files of OpenCLIP have those of
open_clip/transformer.py, in which queries, keys and values are one matrix: `attn.in_proj_weight` (3 d, d) is cut into
`attn.q_proj.weight`, `attn.k_proj.weight` and `attn.v_proj.weight` before it is renamed, and joined after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

LAYER = (
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
    ("self_attn.q_proj", "attn.q_proj"),
    ("self_attn.k_proj", "attn.k_proj"),
    ("self_attn.v_proj", "attn.v_proj"),
)
PIECES = "q_proj", "k_proj", "v_proj"
JOINED = ".attn.in_proj_"
PROJECTION = "text_projection"  # a parameter (d, p) in OpenCLIP, a linear layer's weight (p, d) in transformers


def clip_names() -> Iterator[tuple[str, str]]:
    """Yield (name with `text_model.`, original name) of the modules of CLIP-L, whose original names lack it."""
    for name in ("embeddings", "encoder", "final_layer_norm"):
        yield f"text_model.{name}", name


def open_clip_names(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name with `text_model.`, OpenCLIP's name) of the modules of a text encoder.

    Args:
        config: its config; "num_hidden_layers" is used.
    """
    yield "text_model.embeddings.token_embedding", "token_embedding"
    yield "text_model.embeddings.position_embedding.weight", "positional_embedding"
    yield "text_model.final_layer_norm", "ln_final"
    yield f"{PROJECTION}.weight", PROJECTION
    for layer in range(config["num_hidden_layers"]):
        for ours, theirs in LAYER:
            yield f"text_model.encoder.layers.{layer}.{ours}", f"transformer.resblocks.{layer}.{theirs}"


def pieces(name: str) -> list[str]:
    """The three pieces that a joined tensor of OpenCLIP is cut into; of any other tensor, its own name alone."""
    if JOINED not in name:
        return [name]
    layer, kind = name.split(JOINED)
    return [f"{layer}.attn.{piece}.{kind}" for piece in PIECES]


def joined(name: str) -> tuple[str, int]:
    """The reverse of `pieces`: the tensor that a piece belongs to, and its number there; (name, 0) for any other."""
    for number, piece in enumerate(PIECES):
        layer, found, kind = name.rpartition(f".attn.{piece}.")
        if found:
            return f"{layer}{JOINED}{kind}", number
    return name, 0
