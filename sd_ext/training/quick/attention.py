"""Attention over few tokens with a faster backward pass on a CPU.

PyTorch 2.13's fused attention has a backward pass on the CPU that is slow in bfloat16: for 16 x 4 heads of 64 tokens it
takes five times as long as two matrix products and a softmax, which is what Diffusers' `AttnProcessor` does. For many
tokens the fused kernel is faster, and its memory does not grow with the square of their number.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from sd_ext.errors import SeamError
from sd_ext.seams.diffusers.attention import attention_layers, make_processor, processor_kind

log = logging.getLogger(__name__)

FEW = 2**17  # queries x keys up to which plain products were measured to be faster (bfloat16, one and two cores)


class SmallAttention:
    """An attention processor that uses plain matrix products for few tokens in training, else the fused kernel."""

    def __init__(self) -> None:
        self.plain, self.fused = make_processor("plain"), make_processor("sdpa")

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        *args: Any,
        **more: Any,
    ) -> Tensor:
        tokens = hidden_states.shape[1] if hidden_states.ndim == 3 else hidden_states[0, 0].numel()
        keys = tokens if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        few = torch.is_grad_enabled() and tokens * keys <= FEW
        chosen = self.plain if few else self.fused
        return chosen(attn, hidden_states, encoder_hidden_states, *args, **more)


def quicken_attention(model: nn.Module) -> None:
    """Use `SmallAttention` in every attention layer of `model` that has Diffusers' default processor, in place.

    Meant for training on a CPU in bfloat16. If this version of Diffusers is not supported, a warning is logged and
    nothing is changed.
    """
    try:
        plain = [layer for layer in attention_layers(model).values() if processor_kind(layer) == "sdpa"]
    except SeamError as error:
        log.warning("attention is as slow as PyTorch computes it: %s", error)
        return
    for layer in plain:
        layer.set_processor(SmallAttention())
