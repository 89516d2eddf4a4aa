"""The modules of an autoencoder, as Diffusers and as the original code (ldm, modules/diffusionmodules/model.py) call
them. The original code numbers the decoder's levels from the finest, Diffusers from the coarsest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

ATTENTION = ("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")
POINTWISE = tuple(f"{half}.mid.attn_1.{name}.weight" for half in ("encoder", "decoder") for _, name in ATTENTION[1:])
"""Weights that the original code keeps as 1 x 1 convolutions (c, c, 1, 1) and Diffusers as matrices (c, c)."""
OLD = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def modern(name: str) -> str:
    """Diffusers' name of a tensor of an autoencoder that an older version of Diffusers may have saved."""
    parts = name.split(".")
    return ".".join(OLD.get(part, part) for part in parts) if "attentions" in parts else name


def vae_names(config: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (Diffusers' name, original name) of the modules of an autoencoder.

    Args:
        config: its config; "layers_per_block" and "block_out_channels" are used.
    """
    yield from ((name, name) for name in ("quant_conv", "post_quant_conv"))
    layers, levels = config["layers_per_block"], len(config["block_out_channels"])
    for half in ("encoder", "decoder"):
        yield from ((f"{half}.{name}", f"{half}.{name}") for name in ("conv_in", "conv_out"))
        yield f"{half}.conv_norm_out", f"{half}.norm_out"
        for i in range(2):
            yield from _residual(f"{half}.mid_block.resnets.{i}", f"{half}.mid.block_{i + 1}")
        for ours, theirs in ATTENTION:
            yield f"{half}.mid_block.attentions.0.{ours}", f"{half}.mid.attn_1.{theirs}"
    for level in range(levels):
        down, coarse = f"encoder.down.{level}", f"decoder.up.{levels - 1 - level}"
        for layer in range(layers):
            yield from _residual(f"encoder.down_blocks.{level}.resnets.{layer}", f"{down}.block.{layer}")
        for layer in range(layers + 1):
            yield from _residual(f"decoder.up_blocks.{level}.resnets.{layer}", f"{coarse}.block.{layer}")
        yield f"encoder.down_blocks.{level}.downsamplers.0.conv", f"{down}.downsample.conv"
        yield f"decoder.up_blocks.{level}.upsamplers.0.conv", f"{coarse}.upsample.conv"


def _residual(ours: str, theirs: str) -> Iterator[tuple[str, str]]:
    yield ours, theirs
    yield f"{ours}.conv_shortcut", f"{theirs}.nin_shortcut"
