"""The levels at which a U-Net has attention. A level is how often the picture's grid has been halved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeGuard

from torch import nn

from ...errors import InputError
from ...seams.diffusers.unets import attends_over_picture, is_transformer_block


def block_levels(unet: nn.Module) -> Iterator[tuple[int, nn.Module]]:
    """Yield (level, block) for every down, mid and up block: level 0 is the latents' own size, 1 half of it, ..."""
    level = 0
    for block in unet.get_submodule("down_blocks").children():
        yield level, block
        level += getattr(block, "downsamplers", None) is not None
    if getattr(unet, "mid_block", None) is not None:
        yield level, unet.get_submodule("mid_block")
    for block in unet.get_submodule("up_blocks").children():
        yield level, block
        level -= getattr(block, "upsamplers", None) is not None


def transformers(unet: nn.Module) -> list[tuple[int, nn.Module]]:
    """(level, transformer) for all transformers that attend over the picture.

    SD has them at levels 0 to 3, SDXL at 1 and 2.
    """
    return [
        (level, module)
        for level, block in block_levels(unet)
        for module in block.modules()
        if attends_over_picture(module) and transformer_blocks(module)
    ]


def transformer_blocks(transformer: nn.Module) -> list[nn.Module]:
    """The blocks of a transformer, in order."""
    blocks = transformer.get_submodule("transformer_blocks").children()
    return [block for block in blocks if is_transformer_block(block)]


def by_level(unet: nn.Module, name: str, value: Any, neutral: float) -> dict[int, Any]:
    """Read an option that can be set for each level.

    Args:
        unet: the model, whose levels count.
        name: the option, for messages.
        value: a number, which applies to the finest level that has attention; or a list with one number for each level
            from the latents' own size on, where missing ones are neutral.
        neutral: the number that changes nothing.

    Returns:
        Level -> number, for the levels where it is not neutral.

    Raises:
        InputError: a number for a level that does not exist or has no attention.
    """
    levels = sorted({level for level, _ in transformers(unet)})
    if not isinstance(value, list | tuple):
        if value == neutral:
            return {}
        if not levels:
            raise InputError(f"{name}={value!r}: this model has no attention over the picture")
        return {levels[0]: value}
    asked = {level: each for level, each in enumerate(value) if each != neutral}
    for level, each in asked.items():
        if level not in levels:
            raise InputError(
                f"{name}={list(value)!r} asks for {each!r} at level {level}; "
                f"this model has attention at {', '.join(map(str, levels)) or 'no level'}: put {neutral} elsewhere"
            )
    return asked


def training_size(unet: nn.Module, option: str) -> tuple[int, int]:
    """Height and width of the latents that the model was trained on, from its config.

    Args:
        unet: the model.
        option: the option that needs them, for the message.

    Raises:
        InputError: the config does not contain them.
    """
    size = unet.config.get("sample_size")  # type: ignore[union-attr]
    if size is None:
        raise InputError(f"{option} needs the training size, which this model's config lacks (sample_size)")
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return height, width


def is_number(value: Any, *kinds: type) -> TypeGuard[float]:
    """Whether a value is a number (of one of `kinds`, if given), and neither a truth value nor NaN."""
    return isinstance(value, kinds or (int, float)) and not isinstance(value, bool) and value == value
