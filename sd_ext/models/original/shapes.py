"""The configs of a checkpoint's networks, as far as the names and shapes of its tensors tell them.

What no shape tells, such as the number of attention heads, comes from the family (`families`). So a file of unusual
widths is read as well as a usual one, and a file of another structure is found out before anything is built from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import ModelError

Shapes = Mapping[str, tuple[int, ...]]
"""Name of a tensor, without the part's beginning -> its shape."""


def unet_config(shapes: Shapes) -> dict[str, Any]:
    """The config of a U-Net in the original layout, without attention heads and sizes of pictures.

    Args:
        shapes: the tensors after `model.diffusion_model.`.

    Raises:
        ModelError: the tensors are not those of such a U-Net.
    """
    channels, layers, depths = _levels(shapes)
    middle = _depth(shapes, "middle_block.1")
    if not middle:
        raise ModelError("has a U-Net without attention in its middle block, which is of none of the families known")
    with_attention = [depth for depth in depths if depth]
    # Diffusers takes the middle block's depth from the last level, whether or not that level has attention.
    per_level = [*(depth or 1 for depth in depths[:-1]), depths[-1] or middle]
    same = {middle, *with_attention} == {middle}
    types = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths]
    made: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": dimension(shapes, "input_blocks.0.0.weight", 1),
        "out_channels": dimension(shapes, "out.2.weight", 0),
        "block_out_channels": channels,
        "layers_per_block": layers,
        "down_block_types": types,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(types)],
        "transformer_layers_per_block": middle if same else per_level,
        "cross_attention_dim": dimension(shapes, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 1),
        "use_linear_projection": len(shape(shapes, "middle_block.1.proj_in.weight")) == 2,
    }
    if "label_emb.0.0.weight" in shapes:
        width = dimension(shapes, "label_emb.0.0.weight", 1)
        made |= {"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": width}
    return made


def _levels(shapes: Shapes) -> tuple[list[int], int, list[int]]:
    """The levels of a U-Net's way down: channels of each, residual layers of each, transformer depth of each."""
    channels, counts, depths, block = [], [0], [0], 1
    while True:
        if f"input_blocks.{block}.0.op.weight" in shapes:
            counts.append(0)
            depths.append(0)
        elif f"input_blocks.{block}.0.in_layers.2.weight" in shapes:
            if not counts[-1]:
                channels.append(dimension(shapes, f"input_blocks.{block}.0.in_layers.2.weight", 0))
                depths[-1] = _depth(shapes, f"input_blocks.{block}.1")
            counts[-1] += 1
        else:
            break
        block += 1
    if len(set(counts)) != 1 or not counts[0]:
        raise ModelError("has a U-Net whose levels differ in their layers, which is of none of the families known")
    return channels, counts[0], depths


def _depth(shapes: Shapes, block: str) -> int:
    """How many transformer blocks an attention block has; 0 if there is none."""
    return count(shapes, f"{block}.transformer_blocks.", ".norm1.weight")


def vae_config(shapes: Shapes) -> dict[str, Any]:
    """The config of an autoencoder in the original layout, without its scaling factor.

    Args:
        shapes: the tensors after `first_stage_model.`.

    Raises:
        ModelError: the tensors are not those of such an autoencoder.
    """
    levels = count(shapes, "encoder.down.", ".block.0.conv1.weight")
    if not levels:
        raise ModelError("has an autoencoder of another kind than Stable Diffusion's")
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": dimension(shapes, "encoder.conv_in.weight", 1),
        "out_channels": dimension(shapes, "decoder.conv_out.weight", 0),
        "latent_channels": dimension(shapes, "post_quant_conv.weight", 0),
        "block_out_channels": [
            dimension(shapes, f"encoder.down.{level}.block.0.conv1.weight", 0) for level in range(levels)
        ],
        "layers_per_block": count(shapes, "encoder.down.0.block.", ".conv1.weight"),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def clip_config(shapes: Shapes) -> dict[str, Any]:
    """The config of a text encoder with transformers' names (after `text_model.`), without activation and projection.

    Raises:
        ModelError: the tensors are not those of a text encoder.
    """
    return _text_config(
        shapes, "embeddings.token_embedding.weight", "embeddings.position_embedding.weight",
        "encoder.layers.", ".mlp.fc1.weight",
    )  # fmt: skip


def open_clip_config(shapes: Shapes) -> dict[str, Any]:
    """The config of a text encoder with OpenCLIP's names, without activation and projection.

    Args:
        shapes: the tensors after `model.`.

    Raises:
        ModelError: the tensors are not those of a text encoder.
    """
    return _text_config(
        shapes, "token_embedding.weight", "positional_embedding", "transformer.resblocks.", ".mlp.c_fc.weight"
    )


def _text_config(shapes: Shapes, words: str, positions: str, layers: str, wide: str) -> dict[str, Any]:
    return {
        "vocab_size": dimension(shapes, words, 0),
        "hidden_size": dimension(shapes, words, 1),
        "max_position_embeddings": dimension(shapes, positions, 0),
        "intermediate_size": dimension(shapes, f"{layers}0{wide}", 0),
        "num_hidden_layers": count(shapes, layers, wide),
    }


def count(shapes: Shapes, before: str, after: str) -> int:
    """How many of the names `before` + 0 + `after`, `before` + 1 + `after`, ... there are, up to the first gap."""
    number = 0
    while f"{before}{number}{after}" in shapes:
        number += 1
    return number


def shape(shapes: Shapes, name: str) -> tuple[int, ...]:
    """The shape of a tensor. Raises `ModelError`, the end of a sentence, if it is not there."""
    if name not in shapes:
        raise ModelError(f"lacks the tensor {name}")
    return shapes[name]


def dimension(shapes: Shapes, name: str, number: int) -> int:
    """One dimension of a tensor's shape. Raises `ModelError`, the end of a sentence, if it is not there."""
    found = shape(shapes, name)
    if number >= len(found) or not found[number]:
        raise ModelError(f"has a tensor {name} of the shape {found}")
    return found[number]
