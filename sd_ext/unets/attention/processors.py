"""Attention that never surprises: one processor for every device, and a report of what each layer uses.

`set_attention(pipe, "auto")` changes the layers of this pipeline or model and nothing else: no process-wide default, no
processor that carries weights or settings of its own (IP-Adapter, custom diffusion, added keys and values), and no
exception where a GPU or a package is missing. What could not be had is computed by torch's SDPA, and said once.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.models import attention_processor as diffusers_attention
from diffusers.models.attention_processor import Attention

from ...errors import InputError, UnknownNameError
from . import kernels as backends
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
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        *_: Any,
        **__: Any,
    ) -> torch.Tensor:
        """As Diffusers' `AttnProcessor` with any kernel; `(batch, tokens, channels)` or `(batch, channels, h, w)`."""
        residual, shape = hidden_states, hidden_states.shape
        x = _tokens(attn, hidden_states, temb)
        context = x if encoder_hidden_states is None else _context(attn, encoder_hidden_states)
        x = self.attend(attn, x, context, attention_mask)
        x = attn.to_out[1](attn.to_out[0](x))  # type: ignore[index]
        if len(shape) == 4:
            x = x.transpose(-1, -2).reshape(shape)
        if attn.residual_connection:
            x = x + residual
        return x / attn.rescale_output_factor

    def query(self, attn: Any, x: torch.Tensor) -> torch.Tensor:
        """`(batch, tokens, channels)`; for processors that change the queries."""
        return attn.to_q(x)

    def attend(self, attn: Any, x: torch.Tensor, context: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """`(batch, tokens, channels)` before the output projection."""
        projected = self.query(attn, x), attn.to_k(context), attn.to_v(context)
        query, key, value = (states.unflatten(-1, (attn.heads, -1)) for states in projected)
        query = query if attn.norm_q is None else attn.norm_q(query)
        key = key if attn.norm_k is None else attn.norm_k(key)
        dtype = query.dtype
        if attn.upcast_attention or attn.upcast_softmax:  # kernels compute the softmax in float32 of what they get
            query, key, value = query.float(), key.float(), value.float()
        bias = _bias(attn, mask, context, query.dtype)
        chosen = self.choose(query.device.type, query.dtype, query.shape[-1], bias is not None)
        out = backends.attend(chosen.backend, query, key, value, bias, attn.scale)
        return out.flatten(2).to(dtype)

    @classmethod
    def choose(cls, device: str, dtype: torch.dtype, head_size: int, has_mask: bool) -> Choice:
        """The kernel for such a call; while torch.compile looks on it is SDPA, which it can see into."""
        if torch.compiler.is_compiling():
            return Choice("sdpa", "torch.compile")
        chosen = backends.choose(cls.backend, device, dtype, head_size, has_mask, backends.available())
        if chosen.backend != cls.backend:
            missed = cls.backend != "auto"
            level = logging.WARNING if missed else logging.INFO
            backends.say(level, f"attention {cls.backend!r} computes by {chosen.backend}: {chosen.why}")
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
# By exact class: what derives from one of these may carry anything.
_REPLACEABLE = {
    diffusers_attention.AttnProcessor,
    diffusers_attention.AttnProcessor2_0,
    diffusers_attention.XFormersAttnProcessor,
    diffusers_attention.SlicedAttnProcessor,
    *_PROCESSORS.values(),
}


def _tokens(attn: Attention, x: torch.Tensor, temb: torch.Tensor | None) -> torch.Tensor:
    """The states as normalized tokens `(batch, tokens, channels)`."""
    if attn.spatial_norm is not None:
        x = attn.spatial_norm(x, temb)  # type: ignore[arg-type]
    if x.ndim == 4:
        x = x.flatten(2).transpose(1, 2)
    if attn.group_norm is not None:
        x = attn.group_norm(x.transpose(1, 2)).transpose(1, 2)
    return x


def _context(attn: Attention, states: torch.Tensor) -> torch.Tensor:
    return attn.norm_encoder_hidden_states(states) if attn.norm_cross else states


def _bias(attn: Attention, mask: torch.Tensor | None, context: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """Diffusers' additive mask as `(batch, heads, 1 or query tokens, key tokens)`."""
    if mask is None:
        return None
    batch, keys, _ = context.shape
    mask = attn.prepare_attention_mask(mask, keys, batch)
    return mask.view(batch, attn.heads, -1, mask.shape[-1]).to(dtype)


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
    if backend not in backends.BACKENDS:
        raise UnknownNameError("attention backend", backend, backends.BACKENDS)
    layers = _layers(pipe_or_model)
    with contextlib.ExitStack() as stack:
        for model in _models(pipe_or_model).values():
            below = getattr(model, "uninstalled", None)  # a variant's features wrap processors
            stack.enter_context(below() if callable(below) else contextlib.nullcontext())  # type: ignore[arg-type]
        for _, attn in layers:
            if type(attn.processor) in _REPLACEABLE:
                attn.set_processor(_default(attn) if backend == "default" else _PROCESSORS[backend]())  # type: ignore
    report = attention_report(pipe_or_model)
    _announce(backend, report)
    return report


def _announce(backend: str, report: AttentionReport) -> None:
    used = sorted({layer.backend for layer in report})
    alone = sum(layer.why == _LEFT_ALONE for layer in report)
    others = f"; {alone} layers keep processors of their own" if alone else ""
    backends.say(logging.INFO, f"attention {backend!r}: {len(report)} layers, computed by {', '.join(used)}{others}")


def _default(attn: Attention) -> Any:
    """What Diffusers installs; its SDPA processor takes no scale, so that layers with another get the plain one."""
    return diffusers_attention.AttnProcessor2_0() if attn.scale_qk else diffusers_attention.AttnProcessor()


def attention_report(pipe_or_model: Any) -> AttentionReport:
    """What every attention layer uses, for calls as they come in sampling: on its weights' device, without a mask.

    Raises:
        InputError: something without attention layers of Diffusers' kind.
    """
    return AttentionReport(_describe(name, attn) for name, attn in _layers(pipe_or_model))


_LEFT_ALONE = "left alone: its processor is more than a kernel"
_KNOWN = {
    diffusers_attention.AttnProcessor: Choice("math", "Diffusers' plain processor"),
    diffusers_attention.AttnProcessor2_0: Choice("sdpa", "Diffusers' default"),
    diffusers_attention.XFormersAttnProcessor: Choice("xformers", "Diffusers' own"),
    diffusers_attention.SlicedAttnProcessor: Choice("math", "Diffusers' slices"),
}


def _describe(name: str, attn: Attention) -> Layer:
    processor, head_size = attn.processor, attn.inner_dim // attn.heads
    if isinstance(processor, MemoryEfficientAttnProcessor):
        weight = next(attn.parameters())
        upcast = attn.upcast_attention or attn.upcast_softmax
        chosen = backends.choose(
            processor.backend,
            weight.device.type,
            torch.float32 if upcast else weight.dtype,
            head_size,
            False,
            backends.available(),
        )
    else:
        chosen = _KNOWN.get(type(processor), Choice("own", _LEFT_ALONE))
    kind = "cross" if attn.is_cross_attention else "self"
    return Layer(name, attn.heads, head_size, kind, type(processor).__name__, *chosen)


def _models(pipe_or_model: Any) -> dict[str, torch.nn.Module]:
    """The networks of a pipeline by name, or the model itself."""
    parts = getattr(pipe_or_model, "components", None)
    models = parts if isinstance(parts, dict) else {"": pipe_or_model}
    return {name: model for name, model in models.items() if isinstance(model, torch.nn.Module)}


def _layers(pipe_or_model: Any) -> list[tuple[str, Attention]]:
    """Every attention layer of Diffusers' own class, with its dotted name; `InputError` if there is none."""
    layers = list(_find_layers(pipe_or_model))
    if not layers:
        raise InputError(
            f"{type(pipe_or_model).__name__} has no attention layers of Diffusers' class Attention; pass a pipeline or "
            "model of the Stable Diffusion kind"
        )
    return layers


def _find_layers(pipe_or_model: Any) -> Iterator[tuple[str, Attention]]:
    seen: set[int] = set()
    for part, model in _models(pipe_or_model).items():
        for name, module in model.named_modules():
            if isinstance(module, Attention) and id(module) not in seen:
                seen.add(id(module))
                yield f"{part}.{name}".strip("."), module


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
