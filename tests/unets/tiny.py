"""Tiny U-Nets with every setting of `UNet2DConditionModel`, and what each is called with."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel

WIDTH = 8
BASE: dict[str, Any] = {
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": WIDTH,
}
SD15: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (8, 8, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
    "cross_attention_dim": WIDTH,
}
TEXT_TIME = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 6 * 4 + WIDTH,
}
SDXL: dict[str, Any] = {
    **TEXT_TIME,
    "sample_size": 16,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": (2, 4, 4),
    "transformer_layers_per_block": (1, 2, 2),
    "use_linear_projection": True,
    "cross_attention_dim": WIDTH,
}
SIMPLE = {
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
}

# Not here: dual_cross_attention, which Diffusers 0.42 itself cannot run.
CONFIGS: dict[str, dict[str, Any]] = {
    "sd15": SD15,
    "sd21": {
        **SD15,
        "layers_per_block": 2,
        "use_linear_projection": True,
        "attention_head_dim": (2, 2, 4, 4),
        "upcast_attention": True,
    },
    "sdxl": SDXL,
    "inpainting": {**BASE, "in_channels": 9},
    "class timestep": {**BASE, "class_embed_type": "timestep"},
    "class identity": {**BASE, "class_embed_type": "identity"},
    "class projection": {
        **BASE,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 6,
        "class_embeddings_concat": True,
    },
    "class simple projection": {
        **BASE,
        "class_embed_type": "simple_projection",
        "projection_class_embeddings_input_dim": 6,
    },
    "class table": {**BASE, "num_class_embeds": 10},
    "addition text": {**BASE, "addition_embed_type": "text", "addition_embed_type_num_heads": 2},
    "addition text_image": {
        **BASE,
        "addition_embed_type": "text_image",
        "encoder_hid_dim_type": "text_image_proj",
        "encoder_hid_dim": WIDTH,
    },
    "addition image": {
        **BASE,
        "addition_embed_type": "image",
        "encoder_hid_dim_type": "image_proj",
        "encoder_hid_dim": WIDTH,
    },
    "addition image_hint": {
        **BASE,
        "in_channels": 8,
        "addition_embed_type": "image_hint",
        "encoder_hid_dim_type": "image_proj",
        "encoder_hid_dim": WIDTH,
    },
    "text projection": {**BASE, "encoder_hid_dim_type": "text_proj", "encoder_hid_dim": WIDTH},
    "guidance embedding": {**BASE, "time_cond_proj_dim": 6},
    "fourier time": {**BASE, "time_embedding_type": "fourier", "time_embedding_dim": 16},
    "time activations": {**BASE, "time_embedding_act_fn": "silu", "timestep_post_act": "gelu", "act_fn": "gelu"},
    "only cross-attention": {**BASE, "only_cross_attention": True},
    "scale and shift": {**BASE, "resnet_time_scale_shift": "scale_shift", "resnet_out_scale_factor": 1.4},
    "plain mid block": {**BASE, "mid_block_type": "UNetMidBlock2D"},
    "no mid block": {**BASE, "mid_block_type": None},
    "simple attention": {**BASE, **SIMPLE, "resnet_skip_time_act": True},
    "attention blocks": {
        **BASE,
        "down_block_types": ("AttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "AttnUpBlock2D"),
    },
    "no attention": {
        **BASE,
        "down_block_types": ("DownBlock2D",) * 2,
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ("UpBlock2D",) * 2,
    },
    "gated": {**BASE, "attention_type": "gated"},
    "unequal": {
        **BASE,
        "layers_per_block": (1, 2),
        "transformer_layers_per_block": (2, 1),
        "attention_head_dim": (2, 4),
        "cross_attention_dim": (WIDTH, WIDTH),
        "center_input_sample": True,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "mid_block_scale_factor": 1.4,
        "downsample_padding": 1,
    },
}


FULL_SIZE: dict[str, dict[str, Any]] = {
    "sd15": {"sample_size": 64, "cross_attention_dim": 768},
    "sd21": {
        "sample_size": 96,
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    "inpainting": {"sample_size": 64, "in_channels": 9, "cross_attention_dim": 768},
    "sdxl": {
        "sample_size": 128,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}
"""The real ones, to be built on `meta`."""
K_BLOCKS: dict[str, Any] = {
    **BASE,
    "down_block_types": ("KDownBlock2D", "KCrossAttnDownBlock2D"),
    "mid_block_type": None,
    "up_block_types": ("KCrossAttnUpBlock2D", "KUpBlock2D"),
    "block_out_channels": (32, 32),
    "attention_head_dim": 16,
    "layers_per_block": 2,
    "resnet_time_scale_shift": "scale_shift",
    "norm_num_groups": None,
    "act_fn": "gelu",
    "conv_in_kernel": 1,
    "conv_out_kernel": 1,
    "time_cond_proj_dim": 6,
}
"""A latent upscaler's kind of network, to be built and not run: no feature cuts it."""


def build(name: str | None = None, cls: type = UNet2DConditionModel, **changes: Any) -> Any:
    """A U-Net with random weights, the same each time, in evaluation mode; without a name the smallest, of `BASE`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return cls(**{**(BASE if name is None else CONFIGS[name]), **changes}).eval()


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def inputs(unet: Any, batch: int = 2, timestep: float = 500, seed: int = 0) -> dict[str, Any]:
    """Arguments of `forward` that this U-Net takes, with every optional one that its settings ask for."""
    config, size = unet.config, unet.config.sample_size
    hint = config.addition_embed_type == "image_hint"
    out: dict[str, Any] = {
        "sample": draw(batch, 4 if hint else config.in_channels, size, size, seed=seed),
        "timestep": timestep,
        "encoder_hidden_states": draw(batch, 5, WIDTH, seed=seed + 1),
    }
    if config.num_class_embeds:
        out["class_labels"] = torch.arange(batch)
    elif config.class_embed_type is not None:
        width = {"timestep": None, "identity": 4 * config.block_out_channels[0]}.get(config.class_embed_type, 6)
        out["class_labels"] = torch.arange(batch) if width is None else draw(batch, width)
    if config.time_cond_proj_dim:
        out["timestep_cond"] = draw(batch, config.time_cond_proj_dim)
    if config.addition_embed_type == "text_time":
        out["added_cond_kwargs"] = {"text_embeds": draw(batch, WIDTH), "time_ids": torch.ones(batch, 6)}
    elif config.addition_embed_type in ("text_image", "image", "image_hint"):
        out["added_cond_kwargs"] = {"image_embeds": draw(batch, WIDTH), "text_embeds": draw(batch, WIDTH)}
        if hint:
            out["added_cond_kwargs"]["hint"] = draw(batch, 3, 8 * size, 8 * size)
    return out


def control(unet: Any, batch: int = 2) -> dict[str, Any]:
    """Residuals such as a ControlNet gives: one for each skip connection, and one for the mid block."""
    seen: list[torch.Tensor] = []

    def see(_: Any, args: Any, kwargs: Any) -> None:
        seen.extend(kwargs["res_hidden_states_tuple"][::-1])

    handles = [block.register_forward_pre_hook(see, with_kwargs=True) for block in unet.up_blocks]
    handles.append(unet.mid_block.register_forward_hook(lambda _, __, out: seen.append(out)))
    with torch.no_grad():
        unet(**inputs(unet, batch))
    for handle in handles:
        handle.remove()
    mid = seen.pop(0)
    down = [draw(*skip.shape, seed=i) for i, skip in enumerate(reversed(seen))]
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": draw(*mid.shape)}
