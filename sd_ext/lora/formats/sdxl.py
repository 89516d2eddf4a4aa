"""The original names of SDXL's U-Net, which kohya's trainer and most SDXL files use.

    input_blocks.0.0            conv_in
    input_blocks.{1 + 3i + j}   down block i, layer j: .0 resnet, .1 attention; j = 2 is .0.op, the downsampler
    middle_block.{0, 1, 2}      resnet, attention, resnet
    output_blocks.{3i + j}      up block i, layer j: .0 resnet, .1 attention; the upsampler comes last, in j = 2
    out.2                       conv_out

SD 1.x also has three layers a block, so its original names are read by the same rule.
"""

from __future__ import annotations

import re

from ...errors import InputError

BEGINNINGS = ("input_blocks_", "middle_block_", "output_blocks_", "time_embed_", "label_emb_", "out_")
RESNET = {
    "conv1": "in_layers.2", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
TOP = {
    "conv_in": "input_blocks.0.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_WORDS = """
input_blocks middle_block output_blocks in_layers out_layers emb_layers skip_connection op conv time_embed label_emb out
transformer_blocks attn1 attn2 to_q to_k to_v to_out ff net proj proj_in proj_out"""
WORDS = frozenset(_WORDS.split())
PER_BLOCK = 3
_FROM_RESNET = {original: ours for ours, original in RESNET.items()}
_FROM_TOP = {original: ours for ours, original in TOP.items()}


def to_original(path: str) -> str:
    """The original path of a module, from its Diffusers path. Raises `InputError` if there is no such module."""
    if path in TOP:
        return TOP[path]
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", path):
        kind, j, rest = found[1], int(found[2]), found[3]
        return f"middle_block.{1 if kind == 'attentions' else 2 * j}.{_inner(kind, rest, path)}"
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.+)", path):
        side, i, kind, j, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        block = f"input_blocks.{1 + PER_BLOCK * i + j}" if side == "down" else f"output_blocks.{PER_BLOCK * i + j}"
        return f"{block}.{int(kind == 'attentions')}.{_inner(kind, rest, path)}"
    if found := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", path):
        return f"input_blocks.{PER_BLOCK * (int(found[1]) + 1)}.0.op"
    if found := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", path):
        return f"output_blocks.{PER_BLOCK * int(found[1]) + 2}.2.conv"
    raise InputError(f"SDXL's original U-Net has no module unet.{path}")


def _inner(kind: str, rest: str, path: str) -> str:
    if kind == "attentions":
        return rest
    if rest not in RESNET:
        raise InputError(f"SDXL's original U-Net has no module unet.{path}")
    return RESNET[rest]


def from_original(path: str) -> str:
    """The Diffusers path of a module, from its original path. Raises `InputError` if there is no such module."""
    if path in _FROM_TOP:
        return _FROM_TOP[path]
    found = re.fullmatch(r"(input_blocks|middle_block|output_blocks)\.(\d+)\.(.+)", path)
    if not found:
        raise InputError(f"no module {path!r} in the original U-Net")
    side, n, rest = found[1], int(found[2]), found[3]
    if side == "middle_block":
        return f"mid_block.attentions.0.{rest}" if n == 1 else f"mid_block.resnets.{n // 2}.{_outer(rest, path)}"
    i, j = divmod(n - 1 if side == "input_blocks" else n, PER_BLOCK)
    if side == "input_blocks" and rest == "0.op":
        return f"down_blocks.{i}.downsamplers.0.conv"
    block = f"{'down' if side == 'input_blocks' else 'up'}_blocks.{i}"
    if side == "output_blocks" and rest in ("1.conv", "2.conv"):
        return f"{block}.upsamplers.0.conv"
    kind, _, rest = rest.partition(".")
    if kind == "0":
        return f"{block}.resnets.{j}.{_outer(rest, path)}"
    return f"{block}.attentions.{j}.{rest}"


def _outer(rest: str, path: str) -> str:
    if rest not in _FROM_RESNET:
        raise InputError(f"no module {path!r} in the original U-Net")
    return _FROM_RESNET[rest]
