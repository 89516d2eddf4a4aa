"""Features made smaller after a downsampler and brought back by the upsampler that undoes it."""

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
    """By level, the downsampler that leaves it and the upsampler that comes back to it."""
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
    """The hooks of one pair of samplers. The upsampler restores the size that the downsampler saw, whatever it was.

    Attributes:
        active: whether they do anything.
        factor: how many times smaller the features become; 1 restores sizes only.
        size: height and width before the downsampler.
    """

    active: bool = False
    factor: float = 1.0
    size: tuple[int, int] = (0, 0)

    def install(self, downsampler: nn.Module, upsampler: nn.Module, hooks: Hooks) -> None:
        """Put the hooks on both."""
        hooks.before(downsampler, self.see)
        hooks.after(downsampler, self.shrink)
        hooks.before(upsampler, self.restore)

    def see(self, _: nn.Module, args: tuple[Any, ...], __: Any) -> None:
        """Before the downsampler."""
        self.size = (args[0].shape[-2], args[0].shape[-1])

    def shrink(self, _: nn.Module, __: Any, ___: Any, output: torch.Tensor) -> torch.Tensor:
        """After the downsampler."""
        return resize(output, shrunk(output.shape[-2:], self.factor)) if self.active else output

    def restore(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the upsampler."""
        return (with_output_size(args, self.size), kwargs) if self.active else None


def shrunk(size: tuple[int, ...], factor: float) -> tuple[int, int]:
    """Height and width divided by `factor`, rounded, at least 1."""
    height, width = (max(1, round(side / factor)) for side in size)
    return height, width


def resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """`(batch, channels, height, width)` to another height and width, the same tensor if it has them."""
    return x if x.shape[-2:] == size else F.interpolate(x, size, mode="bicubic")


def resized_residuals(
    unet: nn.Module, size: tuple[int, ...], kwargs: Mapping[str, Any], block: int, factor: float
) -> dict[str, Any]:
    """A call's arguments with the residuals of ControlNet and T2I-Adapter as small as the features they are added to.

    Args:
        unet: the model that is called.
        size: height and width of the call's sample.
        kwargs: the arguments of `UNet2DConditionModel.forward`.
        block, factor: where features are shrunk, and how much.
    """
    down, mid, intra = (kwargs.get(name) for name in RESIDUALS)
    blocks, skips, sizes = _sizes(unet, size, block, factor)
    fitted = dict(kwargs)
    if down is not None:
        # Without a residual of the mid block these are an adapter's, one for each block.
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
    """Levels of an adapter's residuals and of the skip connections, and the size of the features at each level."""
    blocks, skips, sizes = [], [0], [(size[0], size[1])]
    for each in unet.get_submodule("down_blocks").children():
        level = len(sizes) - 1
        skips += [level] * len(each.resnets)  # type: ignore[arg-type]
        for sampler in getattr(each, "downsamplers", None) or ():
            halved = (downsampled(sizes[-1][0], sampler), downsampled(sizes[-1][1], sampler))
            sizes.append(shrunk(halved, factor) if level == block else halved)
            skips.append(level + 1)
        # An adapter's residual joins before the downsampler in a block with attention, after it in one without.
        blocks.append(level if has_cross_attention(each) else len(sizes) - 1)
    return [*blocks, len(sizes) - 1], skips, sizes


def _fit(residuals: Any, at: list[int], sizes: list[tuple[int, int]]) -> list[torch.Tensor]:
    return [resize(residual, sizes[level]) for residual, level in zip(residuals, at, strict=False)]
