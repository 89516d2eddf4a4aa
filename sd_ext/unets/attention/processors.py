"""The choice of the kernels of a pipeline or model, and a report of what each layer uses.

`set_attention(pipe, "auto")` changes the layers of this pipeline or model only. It sets no process-wide default, leaves
processors alone that have weights or settings (IP-Adapter, custom diffusion, added keys and values), and raises no
exception if a GPU or a package is missing: torch's SDPA is used instead, and that is logged once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

from ...errors import InputError
from ...seams.diffusers import attention as layers
from ..inside.say import say
from .classes import PROCESSORS, MemoryEfficientAttnProcessor
from .dispatched import DispatchedAttnProcessor, check_backend, processor_class
from .kernels import Choice
from .report import AttentionReport, Layer


def is_replaceable(attn: Any) -> bool:
    """Whether the layer's processor has neither weights nor settings.

    Compares exact classes: subclasses may have some.
    """
    ours = type(attn.processor) in PROCESSORS.values() or isinstance(attn.processor, DispatchedAttnProcessor)
    return ours or layers.processor_kind(attn) is not None


def set_attention(pipe_or_model: Any, backend: str = "auto") -> AttentionReport:
    """Choose the attention kernel of a pipeline's networks or of a model, in place.

    Layers whose processors have weights or settings (IP-Adapter, custom diffusion, added keys and values, fused
    projections, other packages' processors) are not changed; the report lists them. LoRA is in the projections and is
    kept. `unload_ip_adapter` resets cross-attention to Diffusers' default, so call this again after it.

    Args:
        pipe_or_model: a Diffusers pipeline (its U-Net, ControlNet and autoencoder) or a model.
        backend: "auto" uses xFormers where it is installed and supports the call, else torch's SDPA. "sdpa",
            "xformers", "sage" and "sliced" use that kernel, or SDPA where it does not support the call. "default"
            restores Diffusers' own processors. Any other name is one of Diffusers' kernels ("native", "flash",
            "flash_hub", "_native_math", ...), computed by its `dispatch_attention_fn` for these layers alone.

    Returns:
        The `attention_report` after the change.

    Raises:
        InputError: an unknown backend, one of Diffusers' that cannot be had here, or an object without attention
            layers of Diffusers' class.
    """
    return _set(pipe_or_model, backend, None if backend == "default" else _processor_class(backend))


def set_kernel(model: torch.nn.Module, backend: str) -> None:
    """Compute a model's attention by one of Diffusers' kernels; see `set_attention` for what is left alone.

    Args:
        model: the model.
        backend: any of Diffusers' names, also "xformers" and "sage", with which `set_attention` means its own.

    Raises:
        InputError: an unknown one, or one that cannot be had here.
    """
    _set(model, backend, _dispatched(backend))


def _processor_class(backend: str) -> type[MemoryEfficientAttnProcessor]:
    return PROCESSORS[backend] if backend in PROCESSORS else _dispatched(backend)


def _dispatched(backend: str) -> type[MemoryEfficientAttnProcessor]:
    check_backend(backend)
    return processor_class(backend)


def _set(pipe_or_model: Any, backend: str, processor: type[MemoryEfficientAttnProcessor] | None) -> AttentionReport:
    """Give the layers processors of a class; None is Diffusers' own."""
    found = _layers(pipe_or_model)
    for attn in found.values():
        if is_replaceable(attn):
            attn.set_processor(_default(attn) if processor is None else processor())
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
        dtype = torch.float32 if layers.upcasts(attn) else weight.dtype
        chosen = processor.planned(weight.device.type, dtype, head_size)
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

    def set_attention_backend(self, backend: str) -> None:
        """Compute this model's attention by one of Diffusers' kernels, and no other model's.

        Args:
            backend: "native", "flash", "sage", "xformers", "flash_hub", ...; see `diffusers.attention_dispatch`.

        Raises:
            InputError: an unknown one, or one that cannot be had here.
        """
        set_kernel(self, backend.lower())  # type: ignore[arg-type]

    def reset_attention_backend(self) -> None:
        """Restore Diffusers' processors."""
        set_attention(self, "default")

    def set_default_attn_processor(self) -> None:
        """Restore Diffusers' processors.

        This package's are replaced first, since Diffusers refuses to replace unknown ones.
        """
        set_attention(self, "default")
        super().set_default_attn_processor()  # type: ignore[misc]
