"""Prepares a U-Net for training."""

from __future__ import annotations

from typing import Any

from sd_ext.errors import InputError
from sd_ext.seams.diffusers.unets import checkpointable, set_checkpointing
from sd_ext.training.model.settings import UnetSettings


def prepare_unet(unet: Any, settings: UnetSettings) -> None:
    """Switch on gradient checkpointing, an attention backend and compilation, as the settings say, in place.

    Where the whole text is added to the time, it gets there in the numbers of the weights: autocast leaves it in
    float32, which a normalisation with other weights refuses.

    Raises:
        InputError: `checkpoint_blocks` names a block that the U-Net does not have.
    """
    if unet.config.addition_embed_type == "text":
        unet.add_embedding.register_forward_pre_hook(lambda module, given: (given[0].to(module.norm1.weight.dtype),))
    if settings.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
        if settings.checkpoint_blocks:
            able = checkpointable(unet)
            for block in settings.checkpoint_blocks:
                if not any(name.startswith(block) for name in able):
                    there = ", ".join(name for name in able if name)
                    raise InputError(f"checkpoint_blocks: {block} is no block of the U-Net; it has {there}")
            set_checkpointing(unet, [name for name in able if name.startswith(settings.checkpoint_blocks)])
    if settings.attention_backend != "default":
        from sd_ext.unets.attention.processors import set_attention

        set_attention(unet, settings.attention_backend)
    if settings.compile:
        unet.compile_repeated_blocks(fullgraph=False)
