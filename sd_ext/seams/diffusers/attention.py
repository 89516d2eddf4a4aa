"""Attention layers of Diffusers' class `Attention`, and their processors.

A processor gets the layer as an argument and uses its projections and settings. Which these are is not documented, so
they are used only in this file. Functions that run within a call of the network have no guard around them, because
`torch.compile` traces them; `attention_layers` checks once that everything they use exists.
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
    """The model's attention layers of Diffusers' class, by dotted name; empty if it has none of that class."""
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
    """The kind of a layer's processor, if it is one of Diffusers' processors without weights or settings.

    Compares exact classes, since a subclass may have weights or settings.

    Returns:
        "plain" (two matrix products and a softmax), "sdpa" (torch's fused attention), "xformers" or "sliced"; None for
        any other.
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
    """Make one of Diffusers' processors.

    Args:
        kind: "plain" or "sdpa"; see `processor_kind`.
    """
    from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

    return AttnProcessor() if kind == "plain" else AttnProcessor2_0()


def default_kind(layer: Any) -> str:
    """The kind of processor that Diffusers gives a layer: "sdpa" if the layer scales its scores, else "plain"."""
    return "sdpa" if layer.scale_qk else "plain"


# ---- what a processor computes ---------------------------------------------------------------------------------------


def tokens_of(layer: Any, x: Tensor, temb: Tensor | None) -> Tensor:
    """The layer's input as normalized tokens.

    Args:
        layer: the attention layer.
        x: its input, `(batch, tokens, channels)` or `(batch, channels, height, width)`.
        temb: the time embedding for the layer's spatial norm, if it has one.

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
    """The input of the key and value projections of a cross-attention, normalized if the layer does that.

    Args:
        layer: the attention layer.
        states: `encoder_hidden_states`, `(batch, tokens, channels)`.
    """
    return layer.norm_encoder_hidden_states(states) if layer.norm_cross else states


def by_heads(layer: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split projections by heads, and normalize queries and keys if the layer does that.

    Args:
        layer: the attention layer.
        query, key, value: `(batch, tokens, channels)`.

    Returns:
        The same three as `(batch, tokens, heads, head size)`.
    """
    query, key, value = (states.unflatten(-1, (layer.heads, -1)) for states in (query, key, value))
    query = query if layer.norm_q is None else layer.norm_q(query)
    key = key if layer.norm_k is None else layer.norm_k(key)
    return query, key, value


def upcasts(layer: Any) -> bool:
    """Whether the layer computes its scores and their softmax in float32."""
    return layer.upcast_attention or layer.upcast_softmax


def bias_of(layer: Any, mask: Tensor | None, context: Tensor) -> Tensor | None:
    """The layer's attention mask as a bias that is added to the scores.

    Args:
        layer: the attention layer.
        mask: the mask that the layer was called with, or None.
        context: what the keys are computed from, `(batch, key tokens, channels)`.

    Returns:
        `(batch, heads, 1 or query tokens, key tokens)`, or None.
    """
    if mask is None:
        return None
    batch, keys, _ = context.shape
    bias: Tensor = layer.prepare_attention_mask(mask, keys, batch)
    return bias.view(batch, layer.heads, -1, bias.shape[-1])


def output_of(layer: Any, x: Tensor, called_with: Tensor) -> Tensor:
    """The layer's output: applies the output projection, the input's shape, the residual connection and the rescaling.

    Args:
        layer: the attention layer.
        x: the attention's result before the output projection, `(batch, tokens, channels)`.
        called_with: the layer's input, as `x` of `tokens_of`.

    Returns:
        A tensor of the shape of `called_with`.
    """
    x = layer.to_out[1](layer.to_out[0](x))
    if called_with.ndim == 4:
        x = x.transpose(-1, -2).reshape(called_with.shape)
    if layer.residual_connection:
        x = x + called_with
    return x / layer.rescale_output_factor


def size_of(layer: Any) -> tuple[int, int]:
    """(number of heads, channels of each head)."""
    return layer.heads, layer.inner_dim // layer.heads


def is_cross(layer: Any) -> bool:
    """Whether the layer attends to something other than its own tokens, such as the text."""
    return bool(getattr(layer, "is_cross_attention", False))
