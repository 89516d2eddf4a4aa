"""Builds the models of a LoRA run: a frozen U-Net with adapters, and text encoders with adapters and new words.

They are built with weights for a run, or without weights for an estimate of its memory.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from sd_ext.errors import InputError
from sd_ext.models import Model
from sd_ext.training.lora.adapters import TEXT_TARGETS, add_adapters, peft_config, target_modules
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.new_words import Words, add_words
from sd_ext.training.lora.rates import block_rates
from sd_ext.training.model.text_encoders import TextTowers
from sd_ext.training.model.unet import prepare_unet

DTYPES = {"no": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def base_dtype(config: LoraConfig) -> torch.dtype:
    """The number format of the frozen base model; for int8, the format it has before it is quantized."""
    precision = config.memory.base_precision
    return DTYPES[config.machine.mixed_precision if precision in ("auto", "int8") else precision]


def quantize(model: nn.Module) -> None:
    """Quantize the weights of linear layers to 8 bits with torchao, in place.

    Raises:
        InputError: torchao is not installed.
    """
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError("base_precision is int8, which needs torchao: pip install torchao") from error
    quantize_(model, Int8WeightOnlyConfig())


def trains_text(config: LoraConfig) -> bool:
    """Whether text encoders are trained, and so must run in each step: they have adapters or new words."""
    return config.text.text_encoder or bool(config.words.tokens)


def adapt_unet(unet: Any, config: LoraConfig, family: str) -> dict[str, float]:
    """Freeze a U-Net and add adapters to it, in place.

    Args:
        unet: the U-Net.
        config: all settings.
        family: the model's family, which says what numbers in `block_rates` are for.

    Returns:
        Module name -> share of the learning rate, of those with another than 1.

    Raises:
        InputError: the settings name modules that the U-Net does not have, or no block with a learning rate.
    """
    adapters = config.adapters
    names = target_modules(unet, adapters.targets, adapters.blocks)
    share = block_rates(adapters.block_rates, family, names)
    trained = [name for name in names if share(name)]
    if not trained:
        raise InputError("block_rates is 0 for every module with an adapter; nothing would be trained")
    add_adapters(unet, peft_config(adapters, unet, trained, adapters.rank), config.loop.seed)
    return {name: share(name) for name in trained if share(name) != 1}


def adapt_towers(towers: TextTowers, config: LoraConfig) -> list[Words]:
    """Add adapters and new words to text encoders, as the settings say, in place.

    Returns:
        The embedding table with the new words of each text encoder; empty if there are none.

    Raises:
        InputError: a new word is in the vocabulary already, or `token_init` is not a single token.
    """
    adapters, words = config.adapters, config.words
    for number, encoder in enumerate(towers.encoders.values()):
        if config.text.text_encoder:
            names = target_modules(encoder, TEXT_TARGETS)
            settings = peft_config(adapters, encoder, names, config.text.text_encoder_rank or adapters.rank)
            add_adapters(encoder, settings, config.loop.seed + 1 + number)
        if config.unet.gradient_checkpointing:
            encoder.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    return add_words(towers, words.tokens, words.token_vectors, words.token_init) if words.tokens else []


def build_on_meta(config: LoraConfig, files: Model) -> tuple[Any, TextTowers | None]:
    """The models of a run on PyTorch's meta device, which have shapes but no weights.

    Returns:
        (U-Net with adapters, text encoders with adapters and new words, or None if they are not trained).
    """
    with torch.device("meta"):
        made = files.without_weights("unet")
        unet = nn.Module.to(made, base_dtype(config))  # Diffusers' `to` would warn needlessly
        adapt_unet(unet, config, files.family)
        towers = (
            towers_on_meta(files, config.captions.caption_chunks).to(base_dtype(config))
            if trains_text(config)
            else None
        )
    if towers is not None:
        adapt_towers(towers, config)
    prepare_unet(unet, replace(config.unet, compile=False, attention_backend="default"))
    return unet, towers


def towers_on_meta(files: Model, chunks: int = 1) -> TextTowers:
    """The frozen text encoders without weights, and their tokenizers. Call it under `torch.device("meta")`."""
    encoders = [files.without_weights(part) for part in files.text_parts]
    tokenizers = [files.load(part.replace("text_encoder", "tokenizer")) for part in files.text_parts]
    for encoder in encoders:
        encoder.requires_grad_(False)
    return TextTowers(tokenizers, encoders, files.text_parts, chunks=chunks)
