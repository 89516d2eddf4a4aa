"""Attention layers of Diffusers' class `Attention`, and their processors.

A processor is called with the layer and reads its projections and settings. What it reads is in no documentation, so
it is read here only. The functions that run in a network's call are plain ones: `torch.compile` looks into them.
`attention_layers` checks, once, that everything they read is there.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..seam import seam

_READ = (
    *("to_q", "to_k", "to_v", "to_out", "heads", "inner_dim", "scale", "scale_qk", "is_cross_attention"),
    *("upcast_attention", "upcast_softmax", "spatial_norm", "group_norm", "norm_cross", "norm_q", "norm_k"),
    *("residual_connection", "rescale_output_factor", "processor", "set_processor"),
    *("prepare_attention_mask", "norm_encoder_hidden_states"),
)


@seam(
    "Attention",
    *_READ,
    seen="diffusers 0.41 to 0.42, models.attention_processor",
    gone="a choice of attention, and perturbed-attention guidance",
)
def attention_layers(model: nn.Module) -> dict[str, Any]:
    """Attention layers of Diffusers' class by their dotted names; empty where the model has others or none."""
    from diffusers.models.attention_processor import Attention

    layers = {name: module for name, module in model.named_modules() if isinstance(module, Attention)}
    for layer in list(layers.values())[:1]:  # all are of one class
        for part in _READ:
            getattr(layer, part)
    return layers


# ---- processors ------------------------------------------------------------------------------------------------------


@seam(
    "AttnProcessor",
    "AttnProcessor2_0",
    seen="diffusers 0.41 to 0.42, models.attention_processor",
    gone="a choice of attention",
)
def processor_kind(layer: Any) -> str | None:
    """Which of Diffusers' processors without weights or settings of its own a layer has.

    By exact class: what derives from one of these may carry anything.

    Returns:
        "plain" (two products and a softmax), "sdpa" (torch's fused attention), "xformers", "sliced"; None for another.
    """
    from diffusers.models import attention_processor as known

    kinds = {known.AttnProcessor: "plain", known.AttnProcessor2_0: "sdpa"}
    for name, kind in {"XFormersAttnProcessor": "xformers", "SlicedAttnProcessor": "sliced"}.items():
        if hasattr(known, name):
            kinds[getattr(known, name)] = kind
    return kinds.get(type(layer.processor))


@seam(
    "AttnProcessor",
    "AttnProcessor2_0",
    seen="diffusers 0.41 to 0.42, models.attention_processor",
    gone="a choice of attention",
)
def make_processor(kind: str) -> Any:
    """Diffusers' own processor: "plain" or "sdpa", see `processor_kind`."""
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    return AttnProcessor() if kind == "plain" else AttnProcessor2_0()


def default_kind(layer: Any) -> str:
    """Which processor Diffusers gives a layer: its "sdpa" takes no scale, so layers with another get the "plain"."""
    return "sdpa" if layer.scale_qk else "plain"


# ---- what a processor computes ---------------------------------------------------------------------------------------


def tokens_of(layer: Any, x: Tensor, temb: Tensor | None) -> Tensor:
    """The states that a layer is called with as normalized tokens.

    Args:
        x: `(batch, tokens, channels)` or `(batch, channels, height, width)`.
        temb: of the layer's spatial norm, where it has one.

    Returns:
        `(batch, tokens, channels)`.
    """
    if layer.spatial_norm is not None:
        x = layer.spatial_norm(x, temb)
    if x.ndim == 4:
        x = x.flatten(2).transpose(1, 2)
    if layer.group_norm is not None:
        x = layer.group_norm(x.transpose(1, 2)).transpose(1, 2)
    return x


def context_of(layer: Any, states: Tensor) -> Tensor:
    """What keys and values are made of: `(batch, tokens, channels)`, normalized where the layer does so."""
    return layer.norm_encoder_hidden_states(states) if layer.norm_cross else states


def by_heads(layer: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Projections `(batch, tokens, channels)` as `(batch, tokens, heads, head size)`, normalized as the layer does."""
    query, key, value = (states.unflatten(-1, (layer.heads, -1)) for states in (query, key, value))
    query = query if layer.norm_q is None else layer.norm_q(query)
    key = key if layer.norm_k is None else layer.norm_k(key)
    return query, key, value


def upcasts(layer: Any) -> bool:
    """Whether the layer computes its scores and their softmax in float32."""
    return layer.upcast_attention or layer.upcast_softmax


def bias_of(layer: Any, mask: Tensor | None, context: Tensor) -> Tensor | None:
    """The additive mask that a layer is called with as `(batch, heads, 1 or query tokens, key tokens)`.

    Args:
        context: `(batch, key tokens, channels)`.
    """
    if mask is None:
        return None
    batch, keys, _ = context.shape
    bias: Tensor = layer.prepare_attention_mask(mask, keys, batch)
    return bias.view(batch, layer.heads, -1, bias.shape[-1])


def output_of(layer: Any, x: Tensor, called_with: Tensor) -> Tensor:
    """What a layer gives: the output projection, the shape it was called with, its residual and its factor.

    Args:
        x: `(batch, tokens, channels)`, before the projection.
        called_with: as `x` of `tokens_of`.
    """
    x = layer.to_out[1](layer.to_out[0](x))
    if called_with.ndim == 4:
        x = x.transpose(-1, -2).reshape(called_with.shape)
    if layer.residual_connection:
        x = x + called_with
    return x / layer.rescale_output_factor


def size_of(layer: Any) -> tuple[int, int]:
    """Heads and channels of each."""
    return layer.heads, layer.inner_dim // layer.heads


def is_cross(layer: Any) -> bool:
    """Whether the layer attends to something else than its own tokens."""
    return bool(getattr(layer, "is_cross_attention", False))
