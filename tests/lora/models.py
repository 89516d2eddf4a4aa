"""Models in the shapes of SD 1.5, SD 2.1 and SDXL: tiny ones with weights, full ones on the meta device."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

SD_BLOCKS: dict[str, Any] = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SDXL_BLOCKS: dict[str, Any] = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "addition_embed_type": "text_time",
    "use_linear_projection": True,
}
# As in the configuration files of the models on the Hub.
FULL_UNETS: dict[str, dict[str, Any]] = {
    "sd15": {**SD_BLOCKS, "attention_head_dim": 8, "cross_attention_dim": 768},
    "sd21": {
        **SD_BLOCKS,
        "attention_head_dim": [5, 10, 20, 20],
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
    },
    "sdxl": {
        **SDXL_BLOCKS,
        "block_out_channels": [320, 640, 1280],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "transformer_layers_per_block": [1, 2, 10],
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
OPEN_CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
OPEN_CLIP_G = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
    "projection_dim": 1280,
}  # fmt: skip
FULL_TEXT_ENCODERS: dict[str, list[dict[str, Any]]] = {
    "sd15": [CLIP_L],
    "sd21": [OPEN_CLIP_H],
    "sdxl": [CLIP_L, OPEN_CLIP_G],
}
SHAPES = sorted(FULL_UNETS)
WIDTH, WORDS = 16, 40
TINY_TEXT = {
    "hidden_size": WIDTH, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "vocab_size": WORDS, "max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    "projection_dim": WIDTH,
}  # fmt: skip


def on_shapes(names: Iterable[str], witnesses: Iterable[str] = ()) -> list[Any]:
    """Parameters (name, shape) of tests: each name with one shape by default, in turn, and with all among the slow.

    Args:
        names: the names.
        witnesses: those that are tried by default; none for all.
    """
    by_default = set(witnesses) or set(names)
    return [
        pytest.param(
            name,
            shape,
            marks=() if i == number % len(SHAPES) and name in by_default else pytest.mark.slow,
            id=f"{name}-{shape}",
        )
        for number, name in enumerate(names)
        for i, shape in enumerate(SHAPES)
    ]


def tiny_unet(shape: str) -> UNet2DConditionModel:
    """The blocks of the full U-Net, a few channels wide; SDXL's layers too, by whose number its files name modules."""
    config = {
        **FULL_UNETS[shape],
        "block_out_channels": [8, 16, 16] if shape == "sdxl" else [8, 16, 16, 16],
        "attention_head_dim": 2 if shape == "sd15" else [2] * (3 if shape == "sdxl" else 4),
        "cross_attention_dim": 2 * WIDTH if shape == "sdxl" else WIDTH,
        "norm_num_groups": 4,
        "layers_per_block": 2 if shape == "sdxl" else 1,
        "sample_size": 8,
    }
    if shape == "sdxl":
        config |= {
            "transformer_layers_per_block": [1, 2, 2],
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
        }
    return UNet2DConditionModel(**config)


def full_models(shape: str) -> dict[str, nn.Module]:
    """The U-Net and text encoders at full size, without weights."""
    with torch.device("meta"):
        encoders = [
            (CLIPTextModelWithProjection if i else CLIPTextModel)(CLIPTextConfig(**config))
            for i, config in enumerate(FULL_TEXT_ENCODERS[shape])
        ]
        return {
            "unet": UNet2DConditionModel(**FULL_UNETS[shape]),
            **dict(zip(("text_encoder", "text_encoder_2"), encoders, strict=False)),
        }


@cache
def _tiny_models(shape: str, seed: int) -> dict[str, nn.Module]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        models: dict[str, nn.Module] = {"unet": tiny_unet(shape), "text_encoder": CLIPTextModel(text_config())}
        if shape == "sdxl":
            models["text_encoder_2"] = CLIPTextModelWithProjection(text_config())
    return {part: model.eval().requires_grad_(False) for part, model in models.items()}


def tiny_models(shape: str, seed: int = 0) -> dict[str, nn.Module]:
    """Tiny models with weights, made once for all tests: copy them before changing a weight."""
    return dict(_tiny_models(shape, seed))


def text_config() -> CLIPTextConfig:
    return CLIPTextConfig(**TINY_TEXT)


def pipeline(shape: str, models: dict[str, nn.Module]) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    """As much of a pipeline as loading a LoRA takes."""
    rest: dict[str, Any] = {"vae": None, "tokenizer": None, "scheduler": DDIMScheduler(steps_offset=1)}
    rest["scheduler"].register_to_config(clip_sample=False)
    if shape == "sdxl":
        return StableDiffusionXLPipeline(**models, **rest, tokenizer_2=None, add_watermarker=False)
    return StableDiffusionPipeline(
        **models, **rest, safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


@torch.no_grad()
def outputs(models: dict[str, nn.Module]) -> dict[str, torch.Tensor]:
    """What every part makes of a fixed input."""
    draw = torch.Generator().manual_seed(5)
    words = torch.randint(2, WORDS, (2, 12), generator=draw)
    made = {part: model(words)[0] for part, model in models.items() if part != "unet"}
    unet: Any = models["unet"]
    states = torch.randn(2, 12, unet.config.cross_attention_dim, generator=draw)
    added = {
        "text_embeds": torch.randn(2, WIDTH, generator=draw),
        "time_ids": torch.randn(2, 6, generator=draw).abs() * 9,
    }
    latents = torch.randn(2, 4, 8, 8, generator=draw)
    made["unet"] = unet(latents, 17, states, added_cond_kwargs=added if "text_encoder_2" in models else None)[0]
    return made
