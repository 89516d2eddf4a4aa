"""Cut the token grid into tiles, or thin it out, so that self-attention costs less in large pictures."""

from __future__ import annotations

import torch


def nearest_divisor(length: int, wanted: int) -> int:
    """The divisor of `length` closest to `wanted` by ratio; the larger one of two equally close.

    Tiles of this side cover the grid without padding. The result is `length` (one tile) if `wanted` is not smaller, and
    often if `length` has no divisor near `wanted`, as a prime: attention along this side is then exact instead of
    confined to narrow strips.
    """
    if wanted >= length:
        return length
    near = 1
    for side in range(2, length + 1):
        if length % side == 0 and max(side / wanted, wanted / side) <= max(near / wanted, wanted / near):
            near = side
    return near


def cut(x: torch.Tensor, grid: tuple[int, int], tile: tuple[int, int], shift: bool = False) -> torch.Tensor:
    """Cut tokens into tiles.

    Args:
        x: `(batch, height * width, channels)`.
        grid: height and width of the grid in tokens; multiples of the tile's.
        tile: height and width of a tile in tokens.
        shift: roll the grid by half a tile first, so that the borders are elsewhere. Opposite edges of the picture then
            meet, as in shifted windows (Liu et al. 2021, arXiv 2103.14030), but without their mask.

    Returns:
        `(batch * tiles, tile height * tile width, channels)`.
    """
    (height, width), (th, tw) = grid, tile
    x = x.unflatten(1, (height, width))
    if shift:
        x = x.roll((-_half(th, height), -_half(tw, width)), (1, 2))
    x = x.unflatten(2, (width // tw, tw)).unflatten(1, (height // th, th))
    return x.transpose(2, 3).reshape(-1, th * tw, x.shape[-1])


def join(y: torch.Tensor, grid: tuple[int, int], tile: tuple[int, int], shift: bool = False) -> torch.Tensor:
    """The inverse of `cut`, with the same arguments."""
    (height, width), (th, tw) = grid, tile
    y = y.reshape(-1, height // th, width // tw, th, tw, y.shape[-1]).transpose(2, 3)
    y = y.reshape(-1, height, width, y.shape[-1])
    if shift:
        y = y.roll((_half(th, height), _half(tw, width)), (1, 2))
    return y.flatten(1, 2)


def _half(tile: int, length: int) -> int:
    """Half a tile, or 0 if one tile covers the whole side."""
    return tile // 2 if tile < length else 0


def thin(x: torch.Tensor, grid: tuple[int, int], stride: int) -> torch.Tensor:
    """Keep every `stride`-th token down and across, for keys and values.

    Smith et al., "ToDo: Token Downsampling for Efficient Generation of High-Resolution Images", 2024, arXiv 2402.13573,
    section 3: nearest-neighbour downsampling of keys and values. The projections act on each token separately, so
    thinning their input gives the same result as thinning their output, at a fraction of the cost.

    Args:
        x: `(batch, height * width, channels)`.
        grid: height and width in tokens.
        stride: 1 keeps all tokens.

    Returns:
        `(batch, fewer tokens, channels)`.
    """
    return x.unflatten(1, grid)[:, ::stride, ::stride].flatten(1, 2)
