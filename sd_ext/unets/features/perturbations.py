"""How a network is made worse in some places, for guidance that leads away from what it then predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ...errors import InputError
from ...seams.diffusers.attention import attention_layers, is_cross
from ...seams.diffusers.unets import is_transformer_block
from ..attention.classes import MemoryEfficientAttnProcessor
from ..inside.blur import blur

SHORT = {"mid": "mid_block", "down": "down_blocks", "up": "up_blocks"}


class IdentityAttention(MemoryEfficientAttnProcessor):
    """Self-attention in which every token attends only to itself, so that the result is the values."""

    def attend(self, attn: Any, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The values of all tokens, `(batch, tokens, channels)`, even where keys and values are thinned out."""
        return attn.to_v(x)


class BlurredQueries(MemoryEfficientAttnProcessor):
    """Self-attention with queries blurred over the picture, which blurs the attention map's rows (SEG, section 4.2).

    Args:
        sigma: standard deviation of the Gaussian in tokens; None is infinite.
        aspect: height / width of the latents.
    """

    def __init__(self, sigma: float | None = None, aspect: float = 1.0):
        self.sigma, self.aspect = sigma, aspect

    def query(self, attn: Any, x: torch.Tensor) -> torch.Tensor:
        """The blurred queries, `(batch, tokens, channels)`."""
        return blur(attn.to_q(x), self.sigma, self.aspect)


class Skipped(nn.Module):
    """Takes the place of a transformer block and hands its input on."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states


def find_self_attention(unet: nn.Module, option: str, names: Sequence[str]) -> dict[str, Any]:
    """The self-attention layers under some names; see `find`."""
    layers = {name: layer for name, layer in attention_layers(unet).items() if not is_cross(layer)}
    return find(layers, "self-attention", option, names)


def find_transformer_blocks(unet: nn.Module, option: str, names: Sequence[str]) -> dict[str, Any]:
    """The blocks of transformers under some names; see `find`."""
    blocks = {name: module for name, module in unet.named_modules() if is_transformer_block(module)}
    return find(blocks, "transformer block", option, names)


def find(modules: Mapping[str, Any], what: str, option: str, names: Sequence[str]) -> dict[str, Any]:
    """Find modules of a kind by name.

    Args:
        modules: all there are, by name.
        what: the kind, for messages.
        option: the option that the names are from, for messages.
        names: names of modules, or of blocks that contain them; "mid", "down" and "up" are short for "mid_block",
            "down_blocks" and "up_blocks".

    Returns:
        The modules by name.

    Raises:
        InputError: the list is empty, or there is none under one of the names.
    """
    if not names:
        raise InputError(f"{option} must be a list of names such as 'mid' or 'up_blocks.0', got {names!r}")
    found: dict[str, Any] = {}
    for name in names:
        prefix = SHORT.get(name, name)
        under = {n: m for n, m in modules.items() if f"{n}.".startswith(f"{prefix}.")}
        if not under:
            blocks = sorted({n.split(".attentions")[0] for n in modules})
            raise InputError(f"{option}: this model has no {what} in {name!r}; it has some in {', '.join(blocks)}")
        found.update(under)
    return found
