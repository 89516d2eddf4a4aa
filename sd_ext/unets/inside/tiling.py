"""The token grid cut into tiles or thinned out, for self-attention that is not quadratic in the picture."""

from __future__ import annotations

import torch


def nearest_divisor(length: int, wanted: int) -> int:
    """The divisor of `length` closest to `wanted` by ratio, the larger of two equally close.

    Tiles always cover the grid without padding. `wanted` >= `length` gives `length`: one tile. So may a length with no
    divisor near `wanted`, such as a prime: attention is then exact along this side rather than cut into slivers.
    """
    if wanted >= length:
        return length
    near = 1
    for side in range(2, length + 1):
        if length % side == 0 and max(side / wanted, wanted / side) <= max(near / wanted, wanted / near):
            near = side
    return near


def cut(x: torch.Tensor, grid: tuple[int, int], tile: tuple[int, int], shift: bool = False) -> torch.Tensor:
    """`(batch, height * width, channels)` to `(batch * tiles, tile height * tile width, channels)`.

    Args:
        grid: height and width of the grid in tokens; multiples of the tile's.
        tile: height and width of a tile in tokens.
        shift: roll the grid by half a tile first, so that borders fall elsewhere; the picture's edges meet their
            opposites, as in shifted windows (Liu et al. 2021, arXiv 2103.14030) without the mask.
    """
    (height, width), (th, tw) = grid, tile
    x = x.unflatten(1, (height, width))
    if shift:
        x = x.roll((-_half(th, height), -_half(tw, width)), (1, 2))
    x = x.unflatten(2, (width // tw, tw)).unflatten(1, (height // th, th))
    return x.transpose(2, 3).reshape(-1, th * tw, x.shape[-1])


def join(y: torch.Tensor, grid: tuple[int, int], tile: tuple[int, int], shift: bool = False) -> torch.Tensor:
    """The inverse of `cut`."""
    (height, width), (th, tw) = grid, tile
    y = y.reshape(-1, height // th, width // tw, th, tw, y.shape[-1]).transpose(2, 3)
    y = y.reshape(-1, height, width, y.shape[-1])
    if shift:
        y = y.roll((_half(th, height), _half(tw, width)), (1, 2))
    return y.flatten(1, 2)


def _half(tile: int, length: int) -> int:
    """Half a tile, or nothing along a side that is one tile."""
    return tile // 2 if tile < length else 0


def thin(x: torch.Tensor, grid: tuple[int, int], stride: int) -> torch.Tensor:
    """Every `stride`-th token down and across, for keys and values: `(batch, fewer tokens, channels)`.

    Smith et al., "ToDo: Token Downsampling for Efficient Generation of High-Resolution Images", 2024, arXiv
    2402.13573, section 3: nearest-neighbour downsampling of keys and values. Projections act on each token by itself,
    so thinning what they read is thinning what they give, at a fraction of the cost.
    """
    return x.unflatten(1, grid)[:, ::stride, ::stride].flatten(1, 2)
