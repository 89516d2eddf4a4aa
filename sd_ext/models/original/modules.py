"""Every module with weights of a family's U-Net and text encoders, and what it is called in each layout.

The lists are those of the models as they were published. Names of modules in LoRA files are read by them, so that what
a name means is said in one place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .families import Blocks, Family
from .renames import Renames
from .text_names import open_clip_names
from .unet_names import unet_names

LINEAR, CONV, NORM, EMBEDDING = "linear", "conv", "norm", "embedding"
ATTENTION = "to_q", "to_k", "to_v", "to_out.0"
Listed = Iterator[tuple[str, str]]  # (path, LINEAR, CONV, NORM or EMBEDDING)


def modules(family: Family, part: str) -> Listed:
    """Yield (path, kind) of every module with weights.

    Args:
        family: the family.
        part: "unet" or one of the family's text encoders.

    Yields:
        The path in Diffusers' or transformers' naming, that of a text encoder without `text_model.`; and what the
        module is: `LINEAR`, `CONV`, `NORM` or `EMBEDDING`.
    """
    if part == "unet":
        return unet_modules(family.blocks, bool(family.unet.get("time_ids")))
    return text_modules(family.text[part].layers, part == "text_encoder_2")


def unet_modules(blocks: Blocks, pooled: bool) -> Listed:
    """As `modules`, of a U-Net.

    Args:
        blocks: its blocks.
        pooled: whether it is also given the pooled text and sizes, as SDXL's.
    """
    yield "conv_in", CONV
    for embedding in ("time_embedding", "add_embedding")[: 1 + pooled]:
        yield from ((f"{embedding}.linear_{number}", LINEAR) for number in (1, 2))
    last = len(blocks.widths) - 1
    for level, (width, depth) in enumerate(zip(blocks.widths, blocks.depths, strict=True)):
        wider = level > 0 and width != blocks.widths[level - 1]
        down, up = f"down_blocks.{level}", f"up_blocks.{last - level}"
        for layer in range(blocks.layers + 1):
            if layer < blocks.layers:
                yield from _residual(f"{down}.resnets.{layer}", wider and not layer)
                yield from _attention(f"{down}.attentions.{layer}", depth, blocks.linear)
            yield from _residual(f"{up}.resnets.{layer}", True)
            yield from _attention(f"{up}.attentions.{layer}", depth, blocks.linear)
        if level < last:
            yield f"{down}.downsamplers.0.conv", CONV
        if level > 0:
            yield f"{up}.upsamplers.0.conv", CONV
    for number in (0, 1):
        yield from _residual(f"mid_block.resnets.{number}", False)
    yield from _attention("mid_block.attentions.0", blocks.middle, blocks.linear)
    yield "conv_norm_out", NORM
    yield "conv_out", CONV


def _residual(path: str, shortcut: bool) -> Listed:
    yield f"{path}.norm1", NORM
    yield f"{path}.conv1", CONV
    yield f"{path}.time_emb_proj", LINEAR
    yield f"{path}.norm2", NORM
    yield f"{path}.conv2", CONV
    if shortcut:
        yield f"{path}.conv_shortcut", CONV


def _attention(path: str, depth: int, linear: bool) -> Listed:
    if not depth:
        return
    yield f"{path}.norm", NORM
    yield f"{path}.proj_in", LINEAR if linear else CONV
    for number in range(depth):
        block = f"{path}.transformer_blocks.{number}"
        yield from ((f"{block}.norm{i}", NORM) for i in (1, 2, 3))
        yield from ((f"{block}.attn{i}.{name}", LINEAR) for i in (1, 2) for name in ATTENTION)
        yield from ((f"{block}.ff.net.{name}", LINEAR) for name in ("0.proj", "2"))
    yield f"{path}.proj_out", LINEAR if linear else CONV


def text_modules(layers: int, projected: bool) -> Listed:
    """As `modules`, of a text encoder.

    Args:
        layers: how many it has.
        projected: whether its output is projected to the pooled text.
    """
    for name in ("token_embedding", "position_embedding"):
        yield f"embeddings.{name}", EMBEDDING
    for number in range(layers):
        layer = f"encoder.layers.{number}"
        yield from ((f"{layer}.layer_norm{i}", NORM) for i in (1, 2))
        yield from ((f"{layer}.self_attn.{name}_proj", LINEAR) for name in ("q", "k", "v", "out"))
        yield from ((f"{layer}.mlp.fc{i}", LINEAR) for i in (1, 2))
    yield "final_layer_norm", NORM
    if projected:
        yield "text_projection", LINEAR


def original_names(family: Family, part: str) -> dict[str, str]:
    """Path of each module, as in `modules` -> what the original layout calls it, without the part's beginning."""
    paths = [path for path, _ in modules(family, part)]
    if part == "unet":
        names = Renames(unet_names(unet_settings(family.blocks)))
        return {path: original for path in paths if (original := names.original(path))}
    if family.text[part].style == "clip":
        return {path: path for path in paths}
    names = Renames(open_clip_names({"num_hidden_layers": family.text[part].layers}))
    made = {}
    for path in paths:
        prefix = "" if path == "text_projection" else "text_model."
        if original := names.original(f"{prefix}{path}.weight"):
            made[path] = original.removesuffix(".weight")
    return made


def unet_settings(blocks: Blocks) -> Mapping[str, Any]:
    """The settings of a U-Net's config that decide the original names of its modules (`unet_names`)."""
    types = ["CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in blocks.depths]
    return {
        "layers_per_block": blocks.layers,
        "down_block_types": types,
        "up_block_types": [kind.replace("Down", "Up") for kind in reversed(types)],
    }


def has_bias(path: str) -> bool:
    """Whether a linear layer or convolution of this path has a bias: all but the attention's projections of inputs."""
    return not path.endswith((".to_q", ".to_k", ".to_v", "text_projection"))
