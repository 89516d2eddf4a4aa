"""Attention processors that choose a kernel for each call, and work on every device."""

from __future__ import annotations

import logging
from typing import Any

import torch

from ...seams.diffusers import attention as layers
from ..inside.say import say
from . import kernels
from .kernels import Choice


class MemoryEfficientAttnProcessor:
    """Computes softmax(scale Q K^T + mask) V with a kernel chosen per call, if possible without storing the scores.

    Processors have no state, and each kernel has its own subclass instead of an argument, because `load_ip_adapter`
    recreates the processors of all self-attentions by calling their class without arguments.
    """

    backend = "auto"

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> torch.Tensor:
        """Compute a layer's attention. Arguments as for Diffusers' `AttnProcessor`.

        Args:
            attn: the layer.
            hidden_states: `(batch, tokens, channels)` or `(batch, channels, height, width)`.
            encoder_hidden_states: for cross-attention, `(batch, key tokens, channels)`.
            attention_mask: the mask, as Diffusers passes it.
            temb: the time embedding, for layers with a spatial norm.

        Returns:
            A tensor of the shape of `hidden_states`.
        """
        x = layers.tokens_of(attn, hidden_states, temb)
        context = x if encoder_hidden_states is None else layers.context_of(attn, encoder_hidden_states)
        return layers.output_of(attn, self.attend(attn, x, context, attention_mask), hidden_states)

    def query(self, attn: Any, x: torch.Tensor) -> torch.Tensor:
        """The queries, `(batch, tokens, channels)`. Overridden by processors that modify them."""
        return attn.to_q(x)

    def attend(self, attn: Any, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The attention's result before the output projection, `(batch, tokens, channels)`.

        Args:
            attn: the layer.
            x: its normalized tokens, `(batch, tokens, channels)`.
            context: what keys and values are computed from, `(batch, key tokens, channels)`.
            mask: the mask that the layer was called with, or None.
        """
        query, key, value = layers.by_heads(attn, self.query(attn, x), attn.to_k(context), attn.to_v(context))
        dtype = query.dtype
        if layers.upcasts(attn):  # the scores too; the softmax is in float32 in every kernel
            query, key, value = query.float(), key.float(), value.float()
        bias = layers.bias_of(attn, mask, context)
        bias = None if bias is None else bias.to(query.dtype)
        chosen = self.choose(query.device.type, query.dtype, query.shape[-1], bias is not None)
        out = self.compute(chosen.backend, query, key, value, bias, attn.scale)
        return out.flatten(2).to(dtype)

    def compute(self, backend: str, *operands: Any) -> torch.Tensor:
        """The attention itself, by the kernel that was chosen; operands as of `kernels.attend`."""
        return kernels.attend(backend, *operands)

    @classmethod
    def choose(cls, device: str, dtype: torch.dtype, head_size: int, has_mask: bool) -> Choice:
        """Choose the kernel for such a call; within torch.compile always SDPA, which the compiler supports."""
        if torch.compiler.is_compiling():
            return Choice("sdpa", "torch.compile")
        chosen = kernels.choose(cls.backend, device, dtype, head_size, has_mask, kernels.available())
        if chosen.backend != cls.backend:
            missed = cls.backend != "auto"
            level = logging.WARNING if missed else logging.INFO
            say(level, f"attention {cls.backend!r} computes by {chosen.backend}: {chosen.why}")
        return chosen

    @classmethod
    def planned(cls, device: str, dtype: torch.dtype, head_size: int) -> Choice:
        """The kernel for such a call without a mask, outside torch.compile."""
        return kernels.choose(cls.backend, device, dtype, head_size, False, kernels.available())


class SDPAAttnProcessor(MemoryEfficientAttnProcessor):
    """Always torch's scaled_dot_product_attention.

    Unlike Diffusers' processor it applies the layer's scale and upcasting.
    """

    backend = "sdpa"


# The name avoids "XFormers": when loading an IP-Adapter, Diffusers treats classes with that name as CUDA-only.
class XfAttnProcessor(MemoryEfficientAttnProcessor):
    """xFormers' memory-efficient attention where it supports the call, else SDPA."""

    backend = "xformers"


class SageAttnProcessor(MemoryEfficientAttnProcessor):
    """SageAttention where it supports the call, else SDPA.

    Products in 8 bits: close to the exact picture, not equal.
    """

    backend = "sage"


class SlicedSDPAAttnProcessor(MemoryEfficientAttnProcessor):
    """SDPA, for one sample of the batch at a time."""

    backend = "sliced"


_BASE = MemoryEfficientAttnProcessor
PROCESSORS: dict[str, type[MemoryEfficientAttnProcessor]] = {
    cls.backend: cls for cls in (_BASE, SDPAAttnProcessor, XfAttnProcessor, SageAttnProcessor, SlicedSDPAAttnProcessor)
}
