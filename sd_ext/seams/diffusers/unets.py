"""Blocks of a U-Net, and what pipelines have changed in them.

The names of submodules (`down_blocks`, `resnets`, `attentions`, `upsamplers`, `transformer_blocks`, `attn1`, `ff`, ...)
are not private: they are the names of the weights in every published checkpoint.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
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
    """Whether the U-Net has a mid block and one skip connection for each layer.

    Blocks are recognised by their class name.

    False, for instance, for U-Nets of K blocks, which have one skip connection for each block.
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
    """Whether a block attends to the text. The U-Net passes the text only to blocks with this attribute.

    In such a block, a T2I-Adapter's residual is added before the downsampler; in other blocks, after it.
    """
    return getattr(block, "has_cross_attention", False)


def say_whether_cross(standing: nn.Module, replaced: Any) -> None:
    """Make the U-Net pass the same arguments to the module `standing` as to `replaced`, whose place it takes."""
    standing.has_cross_attention = has_cross_attention(replaced)  # type: ignore[assignment]


@seam(
    "is_input_continuous",
    seen="diffusers 0.41 to 0.42, models.transformers.transformer_2d",
    gone="reduction of tokens, and smoothed-energy guidance",
)
def attends_over_picture(module: nn.Module) -> bool:
    """Whether the module is a transformer whose tokens are the positions of a picture's grid."""
    from diffusers import Transformer2DModel

    return isinstance(module, Transformer2DModel) and bool(module.is_input_continuous)


@seam(
    "BasicTransformerBlock",
    seen="diffusers 0.41 to 0.42, models.attention",
    gone="reduction of tokens, and frozen cross-attention",
)
def is_transformer_block(module: nn.Module) -> bool:
    """Whether the module is a block with self-attention `attn1`, cross-attention `attn2` and feed-forward `ff`."""
    from diffusers.models.attention import BasicTransformerBlock

    return isinstance(module, BasicTransformerBlock)


declare(
    f"{__name__}.set_checkpointing",
    "gradient_checkpointing",
    seen="diffusers 0.41 to 0.42, models.modeling_utils.ModelMixin.enable_gradient_checkpointing",
    gone="gradient checkpointing of chosen blocks",
)


def checkpointable(model: nn.Module) -> dict[str, nn.Module]:
    """The modules, by name, that support gradient checkpointing."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "gradient_checkpointing")}


def set_checkpointing(model: nn.Module, names: Iterable[str]) -> None:
    """Switch on gradient checkpointing for the modules with these names, and off for all others."""
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
    """Whether the module is a downsampler, which halves height and width by a convolution or by averaging."""
    from diffusers.models.downsampling import Downsample2D

    return isinstance(module, Downsample2D)


@seam(
    "Upsample2D",
    seen="diffusers 0.41 to 0.42, models.upsampling",
    gone="large pictures",
)
def is_upsampler(module: nn.Module) -> bool:
    """Whether the module is an upsampler that takes an output size; see `with_output_size`."""
    from diffusers.models.upsampling import Upsample2D

    return isinstance(module, Upsample2D)


def with_output_size(args: tuple[Any, ...], size: tuple[int, int]) -> tuple[Any, ...]:
    """Arguments for an upsampler's call with a given output size, which is its second argument.

    Args:
        args: the positional arguments of the call.
        size: height and width of the output.
    """
    return (args[0], size, *args[2:])


@seam(
    "padding",
    "use_conv",
    seen="diffusers 0.41 to 0.42, models.downsampling.Downsample2D",
    gone="large pictures with ControlNet or T2I-Adapter",
)
def downsampled(side: int, downsampler: Any) -> int:
    """The height or width that a downsampler produces.

    Args:
        side: height or width of its input.
        downsampler: a strided convolution of kernel size 3, which without padding pads by one at the far end, or an
            average over pairs.
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
    """The factors s1, s2, b1, b2 that `enable_freeu` was called with; empty if FreeU is off."""
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
    """The scales of the IP-Adapters in each layer. `set_ip_adapter_scale` changes them without notifying the model."""
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
    """Whether Diffusers' group offloading has a hook on this module (submodules are not searched)."""
    hooks = getattr(module, "_diffusers_hook", None)
    return hooks is not None and hooks.get_hook("group_offloading") is not None


# ---- networks that are built of others -------------------------------------------------------------------------------


@seam(
    "from_unet2d",
    seen="diffusers 0.41 to 0.42, UNetMotionModel",
    gone="saying which features AnimateDiff does without",
)
def when_motion_is_added(then: Callable[[Any, Any], None]) -> None:
    """Call a function with the U-Net and the network of AnimateDiff that has been built of it, whenever one is.

    Args:
        then: the function; its result is not used.
    """
    from diffusers import UNetMotionModel

    build = UNetMotionModel.from_unet2d.__func__

    @functools.wraps(build)
    def building(cls: type, unet: Any, *args: Any, **kwargs: Any) -> Any:
        model = build(cls, unet, *args, **kwargs)
        then(unet, model)
        return model

    UNetMotionModel.from_unet2d = classmethod(building)  # type: ignore[assignment]
