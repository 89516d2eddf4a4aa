"""Models with peft adapters as training leaves them, and a reader written from the formats' definitions alone."""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from . import models

ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
UNET_TARGETS = [
    *ATTENTION, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut",
    "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv", "conv_in", "conv_out", "time_embedding.linear_1",
]  # fmt: skip
TEXT_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]

UNET: dict[str, Any] = {
    "r": 3, "lora_alpha": 6, "target_modules": UNET_TARGETS,
    "rank_pattern": {"to_q": 5, "conv1": 2}, "alpha_pattern": {"to_k": 7.0, "conv2": 1.5},
}  # fmt: skip
TEXT: dict[str, Any] = {
    "r": 4, "lora_alpha": 2, "target_modules": TEXT_TARGETS,
    "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"fc1": 3.0},
}  # fmt: skip


def trained(shape: str, unet: dict[str, Any] | None = None, text: dict[str, Any] | None = None) -> dict[str, nn.Module]:
    """Tiny models with adapters of mixed ranks and strengths whose weights are random, not zero."""
    made = copy.deepcopy(models.tiny_models(shape))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for part, model in made.items():
            settings = {**UNET, **(unet or {})} if part == "unet" else {**TEXT, **(text or {})}
            inject_adapter_in_model(LoraConfig(**settings), model)
            shake(model)
    return made


def shake(model: nn.Module) -> None:
    """Random values, as large as a strong LoRA's, in all that the adapter trains."""
    for name, parameter in model.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.2 * torch.rand_like(parameter)
        elif any(mark in name for mark in (".lora_", ".hada_", ".lokr_")):
            parameter.data = torch.randn_like(parameter) * 0.3


def independent_kohya(tensors: dict[str, torch.Tensor], shape: str) -> dict[str, nn.Module]:
    """Tiny models with a kohya file added as its definition says: W + alpha / rank * up @ down.

    Names are made from the models' side, so that no rule for parsing is shared with what is tested.
    """
    made, left = copy.deepcopy(models.tiny_models(shape)), set(tensors)
    for part, model in made.items():
        for path, module in model.named_modules():
            name = kohya_name(shape, part, path)
            if not isinstance(module, (nn.Linear, nn.Conv2d)) or f"{name}.lora_down.weight" not in tensors:
                continue
            down, up = tensors[f"{name}.lora_down.weight"].double(), tensors[f"{name}.lora_up.weight"].double()
            scale = tensors[f"{name}.alpha"].item() / down.shape[0]
            change = up.flatten(1) @ down.flatten(1)
            module.weight.data += (scale * change).reshape(module.weight.shape).float()
            left -= {f"{name}.{field}" for field in ("lora_down.weight", "lora_up.weight", "alpha")}
    assert not left
    return made


def kohya_name(shape: str, part: str, path: str) -> str:
    """What kohya's trainer calls a module of the Diffusers model."""
    if part != "unet":
        number = "" if shape != "sdxl" else "1" if part == "text_encoder" else "2"
        path = path.removeprefix("text_model.")
        return f"lora_te{number}_text_model_{path.replace('.', '_')}"
    if shape == "sdxl":
        path = sdxl_original(path)
    return "lora_unet_" + path.replace(".", "_")


def sdxl_original(path: str) -> str:
    """The original U-Net counts its layers in the order in which data pass; walk them in that order."""
    blocks = {"conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}
    blocks |= {f"time_embedding.linear_{i}": f"time_embed.{2 * i - 2}" for i in (1, 2)}
    blocks |= {f"add_embedding.linear_{i}": f"label_emb.0.{2 * i - 2}" for i in (1, 2)}
    number = 1
    for i in range(3):
        for j in range(2):
            blocks[f"down_blocks.{i}.resnets.{j}"] = f"input_blocks.{number}.0"
            blocks[f"down_blocks.{i}.attentions.{j}"] = f"input_blocks.{number}.1"
            number += 1
        blocks[f"down_blocks.{i}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    middle = ("resnets.0", "attentions.0", "resnets.1")
    blocks |= {f"mid_block.{name}": f"middle_block.{i}" for i, name in enumerate(middle)}
    number = 0
    for i in range(3):
        for j in range(3):
            blocks[f"up_blocks.{i}.resnets.{j}"] = f"output_blocks.{number}.0"
            blocks[f"up_blocks.{i}.attentions.{j}"] = f"output_blocks.{number}.1"
            if j == 2:
                blocks[f"up_blocks.{i}.upsamplers.0"] = f"output_blocks.{number}.2"
            number += 1
    names = {
        "conv1": "in_layers.2", "conv2": "out_layers.3",
        "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
        "norm1": "in_layers.0", "norm2": "out_layers.0",
    }  # fmt: skip
    for ours, original in sorted(blocks.items(), key=lambda pair: -len(pair[0])):
        if path == ours or path.startswith(f"{ours}."):
            rest = path[len(ours) :]
            return original + (f".{names.get(rest[1:], rest[1:])}" if ".resnets." in ours and rest else rest)
    return path
