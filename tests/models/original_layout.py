"""Files in the original layout of Stable Diffusion, written from the format: every tensor's name and shape.

The lists follow the constructors of the original code (ldm: UNetModel, ResBlock, SpatialTransformer, Encoder, Decoder;
OpenCLIP: TextTransformer), with its own arguments, and know nothing of Diffusers' names or of `sd_ext`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Shape = tuple[int, ...]
Listed = Iterator[tuple[str, Shape]]
WORDS = 49408
FAMILIES = "sd15", "sd21", "sdxl", "sdxl-refiner"
EPSILON = {"modelspec.prediction_type": "epsilon"}
SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I64": 8}


def layer(name: str, *shape: int, bias: bool = True) -> Listed:
    """A linear layer, convolution or (with one dimension) norm."""
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def residual(name: str, inputs: int, outputs: int, embedding: int) -> Listed:
    yield from layer(f"{name}.in_layers.0", inputs)
    yield from layer(f"{name}.in_layers.2", outputs, inputs, 3, 3)
    yield from layer(f"{name}.emb_layers.1", outputs, embedding)
    yield from layer(f"{name}.out_layers.0", outputs)
    yield from layer(f"{name}.out_layers.3", outputs, outputs, 3, 3)
    if inputs != outputs:
        yield from layer(f"{name}.skip_connection", outputs, inputs, 1, 1)


def transformer(name: str, width: int, depth: int, context: int, linear: bool) -> Listed:
    point = () if linear else (1, 1)
    yield from layer(f"{name}.norm", width)
    yield from layer(f"{name}.proj_in", width, width, *point)
    for number in range(depth):
        block = f"{name}.transformer_blocks.{number}"
        for attention, source in (("attn1", width), ("attn2", context)):
            yield from layer(f"{block}.{attention}.to_q", width, width, bias=False)
            yield from layer(f"{block}.{attention}.to_k", width, source, bias=False)
            yield from layer(f"{block}.{attention}.to_v", width, source, bias=False)
            yield from layer(f"{block}.{attention}.to_out.0", width, width)
        yield from layer(f"{block}.ff.net.0.proj", 8 * width, width)
        yield from layer(f"{block}.ff.net.2", width, 4 * width)
        for norm in ("norm1", "norm2", "norm3"):
            yield from layer(f"{block}.{norm}", width)
    yield from layer(f"{name}.proj_out", width, width, *point)


def unet(
    model_channels: int,
    channel_mult: Sequence[int],
    num_res_blocks: int,
    depths: Sequence[int],
    middle: int,
    context_dim: int,
    linear: bool,
    in_channels: int = 4,
    adm: int = 0,
) -> Listed:
    """`depths`: transformer blocks of each level, 0 for a level without; `adm`: width of SDXL's further conditions."""
    embedding, width = 4 * model_channels, model_channels
    yield from layer("time_embed.0", embedding, model_channels)
    yield from layer("time_embed.2", embedding, embedding)
    if adm:
        yield from layer("label_emb.0.0", embedding, adm)
        yield from layer("label_emb.0.2", embedding, embedding)
    yield from layer("input_blocks.0.0", width, in_channels, 3, 3)
    skips, number = [width], 1
    for level, (factor, depth) in enumerate(zip(channel_mult, depths, strict=True)):
        for _ in range(num_res_blocks):
            yield from residual(f"input_blocks.{number}.0", width, factor * model_channels, embedding)
            width = factor * model_channels
            if depth:
                yield from transformer(f"input_blocks.{number}.1", width, depth, context_dim, linear)
            skips.append(width)
            number += 1
        if level != len(channel_mult) - 1:
            yield from layer(f"input_blocks.{number}.0.op", width, width, 3, 3)
            skips.append(width)
            number += 1
    yield from residual("middle_block.0", width, width, embedding)
    yield from transformer("middle_block.1", width, middle, context_dim, linear)
    yield from residual("middle_block.2", width, width, embedding)
    number = 0
    for level, factor in reversed(list(enumerate(channel_mult))):
        for i in range(num_res_blocks + 1):
            inputs, place = width + skips.pop(), 1
            width = factor * model_channels
            yield from residual(f"output_blocks.{number}.0", inputs, width, embedding)
            if depths[level]:
                yield from transformer(f"output_blocks.{number}.1", width, depths[level], context_dim, linear)
                place = 2
            if level and i == num_res_blocks:
                yield from layer(f"output_blocks.{number}.{place}.conv", width, width, 3, 3)
            number += 1
    yield from layer("out.0", width)
    yield from layer("out.2", 4, width, 3, 3)


def vae_block(name: str, inputs: int, outputs: int) -> Listed:
    yield from layer(f"{name}.norm1", inputs)
    yield from layer(f"{name}.conv1", outputs, inputs, 3, 3)
    yield from layer(f"{name}.norm2", outputs)
    yield from layer(f"{name}.conv2", outputs, outputs, 3, 3)
    if inputs != outputs:
        yield from layer(f"{name}.nin_shortcut", outputs, inputs, 1, 1)


def vae_middle(name: str, width: int) -> Listed:
    yield from vae_block(f"{name}.block_1", width, width)
    yield from layer(f"{name}.attn_1.norm", width)
    for each in ("q", "k", "v", "proj_out"):
        yield from layer(f"{name}.attn_1.{each}", width, width, 1, 1)
    yield from vae_block(f"{name}.block_2", width, width)


def vae(ch: int = 128, ch_mult: Sequence[int] = (1, 2, 4, 4), num_res_blocks: int = 2, z: int = 4) -> Listed:
    width, levels = ch, list(enumerate(ch_mult))
    yield from layer("encoder.conv_in", ch, 3, 3, 3)
    for level, factor in levels:
        for i in range(num_res_blocks):
            yield from vae_block(f"encoder.down.{level}.block.{i}", width, ch * factor)
            width = ch * factor
        if level != len(levels) - 1:
            yield from layer(f"encoder.down.{level}.downsample.conv", width, width, 3, 3)
    yield from vae_middle("encoder.mid", width)
    yield from layer("encoder.norm_out", width)
    yield from layer("encoder.conv_out", 2 * z, width, 3, 3)
    yield from layer("quant_conv", 2 * z, 2 * z, 1, 1)
    yield from layer("post_quant_conv", z, z, 1, 1)
    yield from layer("decoder.conv_in", width, z, 3, 3)
    yield from vae_middle("decoder.mid", width)
    for level, factor in reversed(levels):
        for i in range(num_res_blocks + 1):
            yield from vae_block(f"decoder.up.{level}.block.{i}", width, ch * factor)
            width = ch * factor
        if level:
            yield from layer(f"decoder.up.{level}.upsample.conv", width, width, 3, 3)
    yield from layer("decoder.norm_out", width)
    yield from layer("decoder.conv_out", 3, width, 3, 3)


def clip(width: int = 768, layers: int = 12, positions: int = 77) -> Listed:
    """transformers' CLIPTextModel, as CLIP-L is written in these files, after `text_model.`."""
    yield "embeddings.token_embedding.weight", (WORDS, width)
    yield "embeddings.position_embedding.weight", (positions, width)
    for number in range(layers):
        block = f"encoder.layers.{number}"
        for each in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from layer(f"{block}.self_attn.{each}", width, width)
        yield from layer(f"{block}.layer_norm1", width)
        yield from layer(f"{block}.layer_norm2", width)
        yield from layer(f"{block}.mlp.fc1", 4 * width, width)
        yield from layer(f"{block}.mlp.fc2", width, 4 * width)
    yield from layer("final_layer_norm", width)


def open_clip(width: int, layers: int, projection: int, positions: int = 77) -> Listed:
    yield "positional_embedding", (positions, width)
    yield "text_projection", (width, projection)
    yield "logit_scale", ()
    yield "token_embedding.weight", (WORDS, width)
    for number in range(layers):
        block = f"transformer.resblocks.{number}"
        yield from layer(f"{block}.ln_1", width)
        yield from layer(f"{block}.ln_2", width)
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield from layer(f"{block}.attn.out_proj", width, width)
        yield from layer(f"{block}.mlp.c_fc", 4 * width, width)
        yield from layer(f"{block}.mlp.c_proj", width, 4 * width)
    yield from layer("ln_final", width)


CLIP_OF_1, CLIP_OF_2 = "cond_stage_model.transformer.text_model.", "cond_stage_model.model."
FIRST_OF_XL, SECOND_OF_XL = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
ONLY_OF_REFINER = "conditioner.embedders.0.model."


def parts(name: str, tiny: bool, in_channels: int = 4) -> dict[str, Listed]:
    """How the names of each part's tensors begin -> the tensors, for a family at its full or at a tiny size."""
    if name == "sd15":
        sizes = (32, (1, 2), 1, (1, 0), 1, 64, False) if tiny else (320, (1, 2, 4, 4), 2, (1, 1, 1, 0), 1, 768, False)
        text = {CLIP_OF_1: clip(64, 2) if tiny else clip()}
        adm = 0
    elif name == "sd21":
        sizes = (64, (1, 2), 1, (1, 0), 1, 64, True) if tiny else (320, (1, 2, 4, 4), 2, (1, 1, 1, 0), 1, 1024, True)
        text = {CLIP_OF_2: open_clip(64, 3, 64) if tiny else open_clip(1024, 24, 1024)}
        adm = 0
    elif name == "sdxl":
        sizes = (64, (1, 1, 2), 1, (0, 1, 2), 2, 128, True) if tiny else (320, (1, 2, 4), 2, (0, 2, 10), 10, 2048, True)
        text = {FIRST_OF_XL: clip(64, 2) if tiny else clip(),
                SECOND_OF_XL: open_clip(64, 2, 32) if tiny else open_clip(1280, 32, 1280)}  # fmt: skip
        adm = 32 + 6 * 8 if tiny else 2816
    else:
        sizes = (
            (64, (1, 1, 1), 1, (0, 2, 0), 2, 64, True) if tiny else (384, (1, 2, 4, 4), 2, (0, 4, 4, 0), 4, 1280, True)
        )
        text = {ONLY_OF_REFINER: open_clip(64, 2, 32) if tiny else open_clip(1280, 32, 1280)}
        adm = 32 + 5 * 8 if tiny else 2560
    autoencoder = vae(32, (1, 1, 1, 1), 1) if tiny else vae()
    return {
        "model.diffusion_model.": unet(*sizes, in_channels=in_channels, adm=adm),
        "first_stage_model.": autoencoder,
        **text,
    }


def shapes(name: str, tiny: bool = True, in_channels: int = 4) -> dict[str, Shape]:
    """Every tensor of a checkpoint of a family: name -> shape."""
    listed = parts(name, tiny, in_channels)
    return {f"{start}{key}": shape for start, tensors in listed.items() for key, shape in tensors}


def tensors(name: str, dtype: Any = None, in_channels: int = 4, seed: int = 0) -> dict[str, Any]:
    """A tiny checkpoint of a family with random weights, norms near one."""
    import torch

    made, generator = {}, torch.Generator().manual_seed(seed)
    for key, shape in shapes(name, True, in_channels).items():
        drawn = torch.randn(shape, generator=generator)
        norm = len(shape) == 1 and key.endswith("weight")
        fan = max(1, int(torch.tensor(shape[1:]).prod())) if len(shape) > 1 else 25
        made[key] = (1 + 0.1 * drawn if norm else drawn / fan**0.5).to(dtype or torch.float32)
    return made


def write_sparse(path: Path, listed: Mapping[str, Shape], dtype: str = "F16", metadata: Any = None) -> Path:
    """Write a safetensors file of any size whose tensors are zeros that take no room on the disk."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for key, shape in listed.items():
        size = SIZES[dtype]
        for side in shape:
            size *= side
        header[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path
