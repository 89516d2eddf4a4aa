"""Attention processors that work on every device, and a report of what each layer uses.

`set_attention(pipe, "auto")` changes the layers of this pipeline or model only. It sets no process-wide default, leaves
processors alone that have weights or settings (IP-Adapter, custom diffusion, added keys and values), and raises no
exception if a GPU or a package is missing: torch's SDPA is used instead, and that is logged once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from ...errors import InputError, UnknownNameError
from ...seams.diffusers import attention as layers
from ..inside.say import say
from . import kernels
from .kernels import Choice
from .report import AttentionReport, Layer


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
        out = kernels.attend(chosen.backend, query, key, value, bias, attn.scale)
        return out.flatten(2).to(dtype)

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
_PROCESSORS: dict[str, type[MemoryEfficientAttnProcessor]] = {
    cls.backend: cls for cls in (_BASE, SDPAAttnProcessor, XfAttnProcessor, SageAttnProcessor, SlicedSDPAAttnProcessor)
}


def is_replaceable(attn: Any) -> bool:
    """Whether the layer's processor has neither weights nor settings.

    Compares exact classes: subclasses may have some.
    """
    return type(attn.processor) in _PROCESSORS.values() or layers.processor_kind(attn) is not None


def set_attention(pipe_or_model: Any, backend: str = "auto") -> AttentionReport:
    """Choose the attention kernel of a pipeline's networks or of a model, in place.

    Layers whose processors have weights or settings (IP-Adapter, custom diffusion, added keys and values, fused
    projections, other packages' processors) are not changed; the report lists them. LoRA is in the projections and is
    kept. `unload_ip_adapter` resets cross-attention to Diffusers' default, so call this again after it.

    Args:
        pipe_or_model: a Diffusers pipeline (its U-Net, ControlNet and autoencoder) or a model.
        backend: "auto" uses xFormers where it is installed and supports the call, else torch's SDPA. "sdpa",
            "xformers", "sage" and "sliced" use that kernel, or SDPA where it does not support the call. "default"
            restores Diffusers' own processors.

    Returns:
        The `attention_report` after the change.

    Raises:
        InputError: an unknown backend, or an object without attention layers of Diffusers' class.
    """
    if backend not in kernels.BACKENDS:
        raise UnknownNameError("attention backend", backend, kernels.BACKENDS)
    found = _layers(pipe_or_model)
    for attn in found.values():
        if is_replaceable(attn):
            attn.set_processor(_default(attn) if backend == "default" else _PROCESSORS[backend]())
    for model in _models(pipe_or_model).values():
        if callable(forget := getattr(model, "forget", None)):
            forget()  # what a variant remembers was computed by other kernels
    report = attention_report(pipe_or_model)
    _announce(backend, report)
    return report


def _announce(backend: str, report: AttentionReport) -> None:
    used = sorted({layer.backend for layer in report})
    alone = sum(layer.why == _LEFT_ALONE for layer in report)
    others = f"; {alone} layers keep processors of their own" if alone else ""
    say(logging.INFO, f"attention {backend!r}: {len(report)} layers, computed by {', '.join(used)}{others}")


def _default(attn: Any) -> Any:
    """The processor that Diffusers would give the layer."""
    return layers.make_processor(layers.default_kind(attn))


def attention_report(pipe_or_model: Any) -> AttentionReport:
    """Report what every attention layer uses, for calls on its weights' device without a mask, as in sampling.

    Args:
        pipe_or_model: a Diffusers pipeline or a model.

    Raises:
        InputError: it has no attention layers of Diffusers' class.
    """
    return AttentionReport(_describe(name, attn) for name, attn in _layers(pipe_or_model).items())


_LEFT_ALONE = "left alone: its processor is more than a kernel"
_KNOWN = {
    "plain": Choice("math", "Diffusers' plain processor"),
    "sdpa": Choice("sdpa", "Diffusers' default"),
    "xformers": Choice("xformers", "Diffusers' own"),
    "sliced": Choice("math", "Diffusers' slices"),
    None: Choice("own", _LEFT_ALONE),
}


def _describe(name: str, attn: Any) -> Layer:
    processor, (heads, head_size) = attn.processor, layers.size_of(attn)
    if isinstance(processor, MemoryEfficientAttnProcessor):
        weight = next(attn.parameters())
        chosen = kernels.choose(
            processor.backend,
            weight.device.type,
            torch.float32 if layers.upcasts(attn) else weight.dtype,
            head_size,
            False,
            kernels.available(),
        )
    else:
        chosen = _KNOWN[layers.processor_kind(attn)]
    kind = "cross" if layers.is_cross(attn) else "self"
    return Layer(name, heads, head_size, kind, type(processor).__name__, *chosen)


def _models(pipe_or_model: Any) -> dict[str, torch.nn.Module]:
    """The networks of a pipeline by name, or the model itself."""
    parts = getattr(pipe_or_model, "components", None)
    models = parts if isinstance(parts, dict) else {"": pipe_or_model}
    return {name: model for name, model in models.items() if isinstance(model, torch.nn.Module)}


def _layers(pipe_or_model: Any) -> dict[str, Any]:
    """Every attention layer of Diffusers' class, once, by dotted name. Raises `InputError` if there are none."""
    found: dict[str, Any] = {}
    seen: set[int] = set()  # a pipeline may have the same model under two names
    for part, model in _models(pipe_or_model).items():
        for name, layer in layers.attention_layers(model).items():
            if id(layer) not in seen:
                seen.add(id(layer))
                found[f"{part}.{name}".strip(".")] = layer
    if not found:
        raise InputError(
            f"{type(pipe_or_model).__name__} has no attention layers of Diffusers' class Attention; pass a pipeline or "
            "model of the Stable Diffusion kind"
        )
    return found


class AttentionSwitch:
    """Mixin for a U-Net: makes `enable_xformers_memory_efficient_attention()` work on every machine.

    Where xFormers is missing or does not support a call, SDPA is used and the reason is logged.
    """

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op: Callable | None = None) -> None:
        """Switch xFormers on or off; called by Diffusers' enable_ and disable_xformers_memory_efficient_attention().

        Args:
            valid: on or off.
            attention_op: must be None, since xFormers chooses the operator itself.

        Raises:
            InputError: `attention_op` is given.
        """
        if attention_op is not None:
            raise InputError("attention_op cannot be chosen here; leave it out, and xformers takes its fastest")
        set_attention(self, "xformers" if valid else "default")

    def set_default_attn_processor(self) -> None:
        """Restore Diffusers' processors.

        This package's are replaced first, since Diffusers refuses to replace unknown ones.
        """
        set_attention(self, "default")
        super().set_default_attn_processor()  # type: ignore[misc]
