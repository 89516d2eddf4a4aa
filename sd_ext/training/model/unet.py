"""A U-Net made ready for training."""

from __future__ import annotations

from typing import Any

from sd_ext.errors import InputError
from sd_ext.training.settings import DiffusionConfig
from sd_ext.unets.attention.processors import set_attention


def prepare_unet(unet: Any, config: DiffusionConfig) -> None:
    """Checkpointing, compilation and attention as the settings say."""
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        if config.checkpoint_blocks:
            able = [(name, m) for name, m in unet.named_modules() if hasattr(m, "gradient_checkpointing")]
            chosen = [name for name, _ in able if name.startswith(config.checkpoint_blocks)]
            for block in config.checkpoint_blocks:
                if not any(name.startswith(block) for name in chosen):
                    there = ", ".join(name for name, _ in able if name)
                    raise InputError(f"checkpoint_blocks: {block} is no block of the U-Net; it has {there}")
            for name, module in able:
                module.gradient_checkpointing = name in chosen
    if config.attention_backend != "default":
        set_attention(unet, config.attention_backend)
    if config.compile:
        unet.compile_repeated_blocks(fullgraph=False)
