"""Shrink features after a downsampler, and restore their size at the matching upsampler."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ...seams.diffusers.unets import (
    downsampled,
    has_cross_attention,
    is_downsampler,
    is_upsampler,
    with_output_size,
)
from .hooks import Hooks, OfThread
from .levels import block_levels


def pairs(unet: nn.Module) -> dict[int, tuple[nn.Module, nn.Module]]:
    """Level -> the downsampler that leads down from it, and the upsampler that leads back up to it."""
    down: dict[int, nn.Module] = {}
    up: dict[int, nn.Module] = {}
    for level, block in block_levels(unet):
        for module in getattr(block, "downsamplers", None) or ():
            if is_downsampler(module):
                down[level] = module
        for module in getattr(block, "upsamplers", None) or ():
            if is_upsampler(module):
                up[level - 1] = module
    return {level: (down[level], up[level]) for level in down.keys() & up.keys()}


class Shrink(OfThread):
    """The hooks of one downsampler and its upsampler, which restores exactly the size that the downsampler got.

    Attributes:
        active: whether the hooks do anything.
        factor: how many times smaller the features become; with 1, sizes are only restored.
        size: height and width of the downsampler's input.
    """

    active: bool = False
    factor: float = 1.0
    size: tuple[int, int] = (0, 0)

    def install(self, downsampler: nn.Module, upsampler: nn.Module, hooks: Hooks) -> None:
        """Put the hooks on both modules."""
        hooks.before(downsampler, self.see)
        hooks.after(downsampler, self.shrink)
        hooks.before(upsampler, self.restore)

    def see(self, _: nn.Module, args: tuple[Any, ...], __: Any) -> None:
        """Before the downsampler: note the size."""
        self.size = (args[0].shape[-2], args[0].shape[-1])

    def shrink(self, _: nn.Module, __: Any, ___: Any, output: torch.Tensor) -> torch.Tensor:
        """After the downsampler: shrink its output."""
        return resize(output, shrunk(output.shape[-2:], self.factor)) if self.active else output

    def restore(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the upsampler: set its output size."""
        return (with_output_size(args, self.size), kwargs) if self.active else None


def shrunk(size: tuple[int, ...], factor: float) -> tuple[int, int]:
    """Height and width divided by `factor`, rounded, at least 1."""
    height, width = (max(1, round(side / factor)) for side in size)
    return height, width


def resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize `(batch, channels, height, width)` bicubically to another height and width, if it differs."""
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bicubic")


def resized_residuals(
    unet: nn.Module, size: tuple[int, ...], kwargs: Mapping[str, Any], block: int, factor: float
) -> dict[str, Any]:
    """Resize the residuals of ControlNet and T2I-Adapter to the features that they are added to.

    Args:
        unet: the model that is called.
        size: height and width of the call's sample.
        kwargs: arguments of `UNet2DConditionModel.forward`.
        block, factor: after which down block features are shrunk, and how much.

    Returns:
        The arguments with resized residuals.
    """
    down, mid, intra = (kwargs.get(name) for name in RESIDUALS)
    blocks, skips, sizes = _sizes(unet, size, block, factor)
    fitted = dict(kwargs)
    if down is not None:
        # Without a residual for the mid block these are a T2I-Adapter's, one for each block.
        fitted[RESIDUALS[0]] = _fit(down, skips if mid is not None else blocks, sizes)
    if mid is not None:
        fitted[RESIDUALS[1]] = resize(mid, sizes[-1])
    if intra is not None:
        fitted[RESIDUALS[2]] = _fit(intra, blocks, sizes)
    return fitted


RESIDUALS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)


def _sizes(
    unet: nn.Module, size: tuple[int, ...], block: int, factor: float
) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    """The sizes of the features at each level, and where residuals are added.

    Returns:
        The levels of a T2I-Adapter's residuals, the levels of the skip connections, and (height, width) for each level.
    """
    blocks, skips, sizes = [], [0], [(size[0], size[1])]
    for each in unet.get_submodule("down_blocks").children():
        level = len(sizes) - 1
        skips += [level] * len(each.resnets)  # type: ignore[arg-type]
        for sampler in getattr(each, "downsamplers", None) or ():
            halved = (downsampled(sizes[-1][0], sampler), downsampled(sizes[-1][1], sampler))
            sizes.append(shrunk(halved, factor) if level == block else halved)
            skips.append(level + 1)
        # A T2I-Adapter's residual is added before the downsampler in blocks with cross-attention, in others after it.
        blocks.append(level if has_cross_attention(each) else len(sizes) - 1)
    return [*blocks, len(sizes) - 1], skips, sizes


def _fit(residuals: Any, at: list[int], sizes: list[tuple[int, int]]) -> list[torch.Tensor]:
    return [resize(residual, sizes[level]) for residual, level in zip(residuals, at, strict=False)]
