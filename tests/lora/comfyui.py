"""A reader of LoRA files as ComfyUI reads them, restated from the formats: from the model's side, name by name.

For every weight of the model it lists the names that a file may call it, and looks for each kind's tensors under each.
It shares no rule with `sd_ext`: names are those of `adapters` and the original layout's own lists.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from . import adapters, models

PAIRS = [
    ("lora_up.weight", "lora_down.weight"), ("lora_B.weight", "lora_A.weight"), ("lora.up.weight", "lora.down.weight"),
    ("lora_linear_layer.up.weight", "lora_linear_layer.down.weight"),
    ("lora_B.default.weight", "lora_A.default.weight"),
]  # fmt: skip


@functools.cache
def names(shape: str, part: str, path: str) -> list[str]:
    """Every name for a module that ComfyUI knows, and those of peft and LyCORIS."""
    flat = path.replace(".", "_")
    if part != "unet":
        path, number = path.removeprefix("text_model."), 1 if part == "text_encoder" else 2
        clip = {"text_encoder": "clip_h" if shape == "sd21" else "clip_l", "text_encoder_2": "clip_g"}[part]
        made = [f"text_encoders.{clip}.transformer.text_model.{path}", f"{part}.text_model.{path}", f"{part}.{path}"]
        return [*made, f"lora_te{number if shape == 'sdxl' else ''}_text_model_{path.replace('.', '_')}"]
    made = [
        f"unet.{path}",
        f"lora_unet_{flat}",
        f"lycoris_{flat}",
        f"base_model.model.{path}",
        f"diffusion_model.{path}",
    ]
    if shape == "sdxl":
        original = adapters.sdxl_original(path)
        made += [f"diffusion_model.{original}", f"unet.{original}", f"model.diffusion_model.{original}"]
        made += [f"lora_unet_{original.replace('.', '_')}"]
    return made


@functools.cache
def listed(shape: str) -> list[tuple[str, str, Any]]:
    """(part, path, module) of every module with a weight of the tiny models."""
    return [
        (part, path, module)
        for part, model in models.tiny_models(shape).items()
        for path, module in model.named_modules()
        if getattr(module, "weight", None) is not None
    ]


def weights(shape: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters that a file changes, by part and name, as it makes them.

    Raises KeyError for keys that belong to nothing.
    """
    left = {key: tensor.float() for key, tensor in tensors.items() if not key.startswith("bundle_emb.")}
    there = {key[:place] for key in left for place, letter in enumerate(key) if letter == "."}
    made = {}
    for part, path, module in listed(shape):
        for name in names(shape, part, path):
            for parameter, change in _changes(left, name, module.weight) if name in there else ():
                before = getattr(module, parameter)
                made[f"{part}.{path.removeprefix('text_model.')}.{parameter}"] = before + change.reshape(before.shape)
    if left:
        raise KeyError(min(left))
    return made


def _changes(left: dict[str, Tensor], name: str, weight: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Take what the file says of one name, and yield (parameter, what is added to it)."""

    def take(*fields: str) -> list[Tensor] | None:
        found = [f"{name}.{field}" for field in fields]
        return [left.pop(key) for key in found] if all(key in left for key in found) else None

    alpha = take("alpha")

    def scale(rank: int) -> float:
        return float(alpha[0]) / rank if alpha else 1.0

    for up, down in PAIRS:
        if pair := take(up, down):
            a, b = pair[0].flatten(1), pair[1].flatten(1)
            if middle := take("lora_mid.weight"):
                b = torch.einsum("rskl,si->rikl", middle[0], b).flatten(1)
            yield "weight", scale(a.shape[1]) * (a @ b)
    if four := take("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"):
        yield "weight", scale(four[1].shape[0]) * (four[0] @ four[1]) * (four[2] @ four[3])
    if two := take("lokr_w1", "lokr_w2"):
        yield "weight", torch.kron(two[0].reshape(*two[0].shape, *[1] * (two[1].ndim - 2)), two[1])
    if three := take("lokr_w1", "lokr_w2_a", "lokr_w2_b"):
        yield "weight", scale(three[2].shape[0]) * torch.kron(three[0], three[1] @ three[2])
    for field, parameter in (("diff", "weight"), ("diff_b", "bias"), ("w_norm", "weight"), ("b_norm", "bias")):
        if whole := take(field):
            yield parameter, whole[0]
    if value := take("set_weight"):
        yield "weight", value[0] - weight
