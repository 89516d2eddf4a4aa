"""Attention that never surprises: one processor for every device, and a report of what each layer uses.

`set_attention(pipe, "auto")` changes the layers of this pipeline or model and nothing else: no process-wide default, no
processor that carries weights or settings of its own (IP-Adapter, custom diffusion, added keys and values), and no
exception where a GPU or a package is missing. What could not be had is computed by torch's SDPA, and said once.
"""

from __future__ import annotations

import contextlib
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
    """softmax(scale Q K^T + mask) V without the scores in memory where a kernel allows; the kernel is chosen per call.

    It is stateless, and a subclass per kernel rather than an argument: `load_ip_adapter` makes every self-attention's
    processor anew by calling its class without arguments.
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
        """As Diffusers' `AttnProcessor` with any kernel; `(batch, tokens, channels)` or `(batch, channels, h, w)`."""
        x = layers.tokens_of(attn, hidden_states, temb)
        context = x if encoder_hidden_states is None else layers.context_of(attn, encoder_hidden_states)
        return layers.output_of(attn, self.attend(attn, x, context, attention_mask), hidden_states)

    def query(self, attn: Any, x: torch.Tensor) -> torch.Tensor:
        """`(batch, tokens, channels)`; for processors that change the queries."""
        return attn.to_q(x)

    def attend(self, attn: Any, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`(batch, tokens, channels)` before the output projection."""
        query, key, value = layers.by_heads(attn, self.query(attn, x), attn.to_k(context), attn.to_v(context))
        dtype = query.dtype
        if layers.upcasts(attn):  # kernels compute the softmax in float32 of what they get
            query, key, value = query.float(), key.float(), value.float()
        bias = layers.bias_of(attn, mask, context)
        bias = None if bias is None else bias.to(query.dtype)
        chosen = self.choose(query.device.type, query.dtype, query.shape[-1], bias is not None)
        out = kernels.attend(chosen.backend, query, key, value, bias, attn.scale)
        return out.flatten(2).to(dtype)

    @classmethod
    def choose(cls, device: str, dtype: torch.dtype, head_size: int, has_mask: bool) -> Choice:
        """The kernel for such a call; while torch.compile looks on it is SDPA, which it can see into."""
        if torch.compiler.is_compiling():
            return Choice("sdpa", "torch.compile")
        chosen = kernels.choose(cls.backend, device, dtype, head_size, has_mask, kernels.available())
        if chosen.backend != cls.backend:
            missed = cls.backend != "auto"
            level = logging.WARNING if missed else logging.INFO
            say(level, f"attention {cls.backend!r} computes by {chosen.backend}: {chosen.why}")
        return chosen


class SDPAAttnProcessor(MemoryEfficientAttnProcessor):
    """Always torch's scaled_dot_product_attention, with the layer's scale and upcasting, which Diffusers' ignores."""

    backend = "sdpa"


# Not called after the package: Diffusers takes a class with that name to need CUDA when it loads an IP-Adapter.
class XfAttnProcessor(MemoryEfficientAttnProcessor):
    """xFormers' memory-efficient attention wherever it has an operator."""

    backend = "xformers"


class SageAttnProcessor(MemoryEfficientAttnProcessor):
    """SageAttention wherever it has a kernel: products in 8 bits, close to the exact picture but not equal."""

    backend = "sage"


class SlicedSDPAAttnProcessor(MemoryEfficientAttnProcessor):
    """SDPA, one sample of the batch at a time."""

    backend = "sliced"


_BASE = MemoryEfficientAttnProcessor
_PROCESSORS: dict[str, type[MemoryEfficientAttnProcessor]] = {
    cls.backend: cls for cls in (_BASE, SDPAAttnProcessor, XfAttnProcessor, SageAttnProcessor, SlicedSDPAAttnProcessor)
}


def _is_replaceable(attn: Any) -> bool:
    """Whether the layer's processor is a kernel and nothing more. Ours by exact class: one derived may be more."""
    return type(attn.processor) in _PROCESSORS.values() or layers.processor_kind(attn) is not None


def set_attention(pipe_or_model: Any, backend: str = "auto") -> AttentionReport:
    """Choose what computes the attention of a pipeline or model, in place; give back `attention_report` of it.

    Args:
        pipe_or_model: a Diffusers pipeline (its U-Net, ControlNet and autoencoder) or a model.
        backend: "auto" takes xFormers where it is installed and has an operator, else torch's SDPA; "sdpa",
            "xformers", "sage" and "sliced" are what they say, with SDPA where they cannot work; "default" puts
            Diffusers' own processor back.

    Layers whose processors are more than a kernel (IP-Adapter, custom diffusion, added keys and values, fused
    projections, another package's) are left alone; the report says which. LoRA lives in the projections and stays.
    `unload_ip_adapter` gives cross-attention Diffusers' default again: call this once more after it.

    Raises:
        InputError: an unknown backend, or something without attention layers of Diffusers' kind.
    """
    if backend not in kernels.BACKENDS:
        raise UnknownNameError("attention backend", backend, kernels.BACKENDS)
    found = _layers(pipe_or_model)
    with contextlib.ExitStack() as stack:
        for model in _models(pipe_or_model).values():
            below = getattr(model, "uninstalled", None)  # a variant's features wrap processors
            stack.enter_context(below() if callable(below) else contextlib.nullcontext())  # type: ignore[arg-type]
        for attn in found.values():
            if _is_replaceable(attn):
                attn.set_processor(_default(attn) if backend == "default" else _PROCESSORS[backend]())
    report = attention_report(pipe_or_model)
    _announce(backend, report)
    return report


def _announce(backend: str, report: AttentionReport) -> None:
    used = sorted({layer.backend for layer in report})
    alone = sum(layer.why == _LEFT_ALONE for layer in report)
    others = f"; {alone} layers keep processors of their own" if alone else ""
    say(logging.INFO, f"attention {backend!r}: {len(report)} layers, computed by {', '.join(used)}{others}")


def _default(attn: Any) -> Any:
    """What Diffusers installs."""
    return layers.make_processor(layers.default_kind(attn))


def attention_report(pipe_or_model: Any) -> AttentionReport:
    """What every attention layer uses, for calls as they come in sampling: on its weights' device, without a mask.

    Raises:
        InputError: something without attention layers of Diffusers' kind.
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
    """Every attention layer of Diffusers' own class by its dotted name, once; `InputError` if there is none."""
    found: dict[str, Any] = {}
    seen: set[int] = set()  # a model may stand in a pipeline twice
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
    """`enable_xformers_memory_efficient_attention()` that works, or says why not, on every machine; for a U-Net."""

    def set_use_memory_efficient_attention_xformers(self, valid: bool, attention_op: Callable | None = None) -> None:
        """What Diffusers' enable_ and disable_xformers_memory_efficient_attention() of a model call.

        `attention_op` is refused: xFormers chooses the operator, and SDPA computes where it has none.
        """
        if attention_op is not None:
            raise InputError("attention_op cannot be chosen here; leave it out, and xformers takes its fastest")
        set_attention(self, "xformers" if valid else "default")

    def set_default_attn_processor(self) -> None:
        """Diffusers' plain processors; it does so only where it knows the ones it replaces."""
        set_attention(self, "default")
        super().set_default_attn_processor()  # type: ignore[misc]
