"""The modules of a U-Net, as Diffusers and as the original code call them.

The original code numbers all blocks of the way down in one list, and all of the way up in another (ldm and sgm,
modules/diffusionmodules/openaimodel.py). With n residual layers a level:

    input_blocks.0                  the first convolution
    input_blocks.1 to n             the layers of the first level: .0 the residual block, .1 its attention if it has one
    input_blocks.n+1                .0.op halves the size; the next level follows
    output_blocks.0 to n            the n+1 layers of the lowest level; the last also has a .conv that doubles the size
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

ENDS = (
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
    ("add_embedding.linear_1", "label_emb.0.0"),
    ("add_embedding.linear_2", "label_emb.0.2"),
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("mid_block.attentions.0", "middle_block.1"),
)
RESIDUAL = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)


def unet_names(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (Diffusers' name, original name) of the modules of a U-Net.

    Args:
        config: its config; "layers_per_block", "down_block_types" and "up_block_types" are used.
    """
    yield from ENDS
    yield from _residual("mid_block.resnets.0", "middle_block.0")
    yield from _residual("mid_block.resnets.1", "middle_block.2")
    layers, levels = config["layers_per_block"], len(config["down_block_types"])
    for level in range(levels):
        down, first = f"down_blocks.{level}", 1 + level * (layers + 1)
        for layer in range(layers):
            yield from _residual(f"{down}.resnets.{layer}", f"input_blocks.{first + layer}.0")
            yield f"{down}.attentions.{layer}", f"input_blocks.{first + layer}.1"
        yield f"{down}.downsamplers.0.conv", f"input_blocks.{first + layers}.0.op"
        up, first = f"up_blocks.{level}", level * (layers + 1)
        for layer in range(layers + 1):
            yield from _residual(f"{up}.resnets.{layer}", f"output_blocks.{first + layer}.0")
            if "CrossAttn" in config["up_block_types"][level]:
                yield f"{up}.attentions.{layer}", f"output_blocks.{first + layer}.1"
        place = 2 if "CrossAttn" in config["up_block_types"][level] else 1
        yield f"{up}.upsamplers.0.conv", f"output_blocks.{first + layers}.{place}.conv"


def _residual(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    for a, b in RESIDUAL:
        yield f"{ours}.{a}", f"{theirs}.{b}"
