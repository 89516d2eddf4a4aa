"""A Gaussian blur of tokens over the grid of their picture."""

from __future__ import annotations

import functools
import math

import torch


def blur(tokens: torch.Tensor, sigma: float | None, aspect: float) -> torch.Tensor:
    """Blur tokens over their grid. Beyond the borders the grid is continued by reflection.

    Args:
        tokens: `(batch, tokens, channels)`.
        sigma: standard deviation in tokens; None is infinite, so that every token becomes the mean.
        aspect: height / width of the latents, from which the grid's sides are found.

    Returns:
        A tensor of the shape of `tokens`.
    """
    if sigma is None:
        return tokens.mean(1, keepdim=True).expand_as(tokens)
    height, width = grid_of(tokens.shape[1], aspect)
    rows, columns = (_gaussian(n, sigma).to(tokens) for n in (height, width))
    picture = tokens.unflatten(1, (height, width))
    return torch.einsum("yv,xw,bvwc->byxc", rows, columns, picture).flatten(1, 2)


def grid_of(tokens: int, aspect: float) -> tuple[int, int]:
    """Find a grid's (height, width) with `tokens` places, whose ratio is as near as possible to `aspect`."""
    heights = [n for n in range(1, tokens + 1) if tokens % n == 0]
    height = min(heights, key=lambda n: abs(math.log(n * n / tokens / aspect)))
    return height, tokens // height


@functools.lru_cache(maxsize=32)
def _gaussian(size: int, sigma: float) -> torch.Tensor:
    """The blur along one axis as a matrix `(size, size)`: each row has the weights of all positions for one position.

    Weights beyond the ends are reflected back in.
    """
    if sigma > 4 * size:  # the reflected Gaussian is then constant, to within 1e-34
        return torch.full((size, size), 1 / size, dtype=torch.float64)
    reach = math.ceil(4 * sigma)
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64)
    weights = torch.exp(-((offsets / sigma) ** 2) / 2)
    places = (torch.arange(size)[:, None] + offsets.long()) % (2 * size)
    places = torch.where(places < size, places, 2 * size - 1 - places)
    matrix = torch.zeros(size, size, dtype=torch.float64).scatter_add_(1, places, weights.expand(size, -1).contiguous())
    return matrix / weights.sum()
