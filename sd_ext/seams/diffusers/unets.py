"""Blocks of a U-Net, and what pipelines have changed in them.

Names of submodules (`down_blocks`, `resnets`, `attentions`, `upsamplers`, `transformer_blocks`, `attn1`, `ff`, ...) are
no private part: they are the names of weights in every published checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from ..seam import declare, seam

# ---- blocks ----------------------------------------------------------------------------------------------------------

_DOWN = {
    *("DownBlock2D", "CrossAttnDownBlock2D", "AttnDownBlock2D"),
    *("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
}
_UP = {
    *("UpBlock2D", "CrossAttnUpBlock2D", "AttnUpBlock2D"),
    *("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
}

declare(
    f"{__name__}.has_skip_for_each_layer",
    "CrossAttnDownBlock2D",
    "CrossAttnUpBlock2D",
    seen="diffusers 0.41 to 0.42, models.unets.unet_2d_blocks",
    gone="reuse of deep features",
)


def has_skip_for_each_layer(unet: Any) -> bool:
    """Whether the U-Net has a mid block and one skip connection for each layer; blocks are told by their class's name.

    The K blocks have one for each block.
    """
    down, up = ({type(block).__name__ for block in blocks} for blocks in (unet.down_blocks, unet.up_blocks))
    return down <= _DOWN and up <= _UP and unet.mid_block is not None


declare(
    f"{__name__}.has_cross_attention",
    "has_cross_attention",
    seen="diffusers 0.41 to 0.42, models.unets.unet_2d_blocks",
    gone="reuse of deep features, and large pictures with T2I-Adapter",
)


def has_cross_attention(block: Any) -> bool:
    """Whether a block attends to the text. The U-Net hands the text to those that say so, and to no others.

    A T2I-Adapter's residual joins before the downsampler in such a block, and after it in the others.
    """
    return getattr(block, "has_cross_attention", False)


def say_whether_cross(standing: nn.Module, replaced: Any) -> None:
    """Have the U-Net hand the same arguments to a module that stands for another."""
    standing.has_cross_attention = has_cross_attention(replaced)  # type: ignore[assignment]


@seam(
    "is_input_continuous",
    seen="diffusers 0.41 to 0.42, models.transformers.transformer_2d",
    gone="reduction of tokens, and smoothed-energy guidance",
)
def attends_over_picture(module: nn.Module) -> bool:
    """Whether the module is a transformer whose tokens are the places of a picture."""
    from diffusers import Transformer2DModel

    return isinstance(module, Transformer2DModel) and bool(module.is_input_continuous)


@seam(
    "BasicTransformerBlock",
    seen="diffusers 0.41 to 0.42, models.attention",
    gone="reduction of tokens, and frozen cross-attention",
)
def is_transformer_block(module: nn.Module) -> bool:
    """Whether the module is a block of self-attention `attn1`, cross-attention `attn2` and feed-forward `ff`."""
    from diffusers.models.attention import BasicTransformerBlock

    return isinstance(module, BasicTransformerBlock)


declare(
    f"{__name__}.set_checkpointing",
    "gradient_checkpointing",
    seen="diffusers 0.41 to 0.42, models.modeling_utils.ModelMixin.enable_gradient_checkpointing",
    gone="gradient checkpointing of chosen blocks",
)


def checkpointable(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by name that can compute their activations again in the backward pass."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "gradient_checkpointing")}


def set_checkpointing(model: nn.Module, names: Iterable[str]) -> None:
    """Have these modules, and no others, compute their activations again in the backward pass."""
    chosen = set(names)
    for name, module in checkpointable(model).items():
        module.gradient_checkpointing = name in chosen  # type: ignore[assignment]


# ---- samplers between blocks -----------------------------------------------------------------------------------------


@seam(
    "Downsample2D",
    seen="diffusers 0.41 to 0.42, models.downsampling",
    gone="large pictures",
)
def is_downsampler(module: nn.Module) -> bool:
    """Whether the module halves height and width by a convolution or by averages."""
    from diffusers.models.downsampling import Downsample2D

    return isinstance(module, Downsample2D)


@seam(
    "Upsample2D",
    seen="diffusers 0.41 to 0.42, models.upsampling",
    gone="large pictures",
)
def is_upsampler(module: nn.Module) -> bool:
    """Whether the module is one that `with_output_size` works for."""
    from diffusers.models.upsampling import Upsample2D

    return isinstance(module, Upsample2D)


def with_output_size(args: tuple[Any, ...], size: tuple[int, int]) -> tuple[Any, ...]:
    """The arguments of an upsampler's call with the height and width that it shall come to, its second argument."""
    return (args[0], size, *args[2:])


@seam(
    "padding",
    "use_conv",
    seen="diffusers 0.41 to 0.42, models.downsampling.Downsample2D",
    gone="large pictures with ControlNet or T2I-Adapter",
)
def downsampled(side: int, downsampler: Any) -> int:
    """What a downsampler makes of a side: a convolution of 3 with its padding, or pairs averaged.

    A convolution without padding pads by one at the far end.
    """
    return (side + (2 * downsampler.padding or 1) - 3) // 2 + 1 if downsampler.use_conv else side // 2


# ---- what pipelines and models have switched on ----------------------------------------------------------------------

declare(
    f"{__name__}.freeu_factors",
    *("s1", "s2", "b1", "b2"),
    seen="diffusers 0.41 to 0.42, UNet2DConditionModel.enable_freeu",
    gone="FreeU that was switched on before `from_unet`",
)


def freeu_factors(unet: Any) -> dict[str, float]:
    """The factors s1, s2, b1, b2 that `enable_freeu` was called with; empty where FreeU is off."""
    found = {name: getattr(unet.up_blocks[0], name, None) for name in ("s1", "s2", "b1", "b2")}
    return {} if None in found.values() else found  # type: ignore[return-value]


declare(
    f"{__name__}.image_scales",
    "image_projection_layers",
    "to_k_ip",
    "scale",
    seen="diffusers 0.41 to 0.42, models.embeddings and models.attention_processor",
    gone="noticing a changed IP-Adapter scale where features are reused",
)


def image_scales(unet: Any) -> tuple[str, ...]:
    """The scales of IP-Adapters in each layer, which `set_ip_adapter_scale` changes without telling the model."""
    if not hasattr(unet.encoder_hid_proj, "image_projection_layers"):
        return ()
    return tuple(str(module.scale) for module in unet.modules() if hasattr(module, "to_k_ip"))


declare(
    f"{__name__}.is_offloaded_in_groups",
    "_diffusers_hook",
    "group_offloading",
    seen="diffusers 0.41 to 0.42, hooks.hooks and hooks.group_offloading",
    gone="noticing group offloading, in whose order a U-Net's layers must run",
)


def is_offloaded_in_groups(module: nn.Module) -> bool:
    """Whether Diffusers' group offloading hooks this very module."""
    hooks = getattr(module, "_diffusers_hook", None)
    return hooks is not None and hooks.get_hook("group_offloading") is not None
