"""Pictures unlike those of any data set, from which an autoencoder learns to keep the latents of everything bounded.

An autoencoder that has seen only drawings gives what it has not seen, such as an area of one colour, a posterior of any
spread: thousands of times that of its own pictures were measured. A few such pictures in training are enough.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def plain(picture: Tensor, draw: torch.Generator) -> Tensor:
    """One colour."""
    return colour(draw).expand_as(picture).clone()


def halves(picture: Tensor, draw: torch.Generator) -> Tensor:
    """Two colours with a straight border, in any direction."""
    height, width = picture.shape[1:]
    down, right = torch.linspace(-1, 1, height)[:, None], torch.linspace(-1, 1, width)
    angle = 2 * torch.pi * torch.rand((), generator=draw)
    side = angle.sin() * down + angle.cos() * right > torch.rand((), generator=draw) - 0.5
    return torch.where(side, colour(draw), colour(draw))


def noise(picture: Tensor, draw: torch.Generator) -> Tensor:
    """Uniform noise, each pixel or each of a few fields by itself, of any contrast."""
    sides = [2, 4, 8, 16, *picture.shape[1:2]]
    side = sides[int(torch.randint(len(sides), (), generator=draw))]
    made = 2 * torch.rand((1, 3, side, side), generator=draw) - 1
    made = interpolate(made, picture.shape[1:], mode="bilinear")[0]
    return (made * torch.rand((), generator=draw) + colour(draw) / 2).clamp(-1, 1)


def cutting(picture: Tensor, draw: torch.Generator) -> Tensor:
    """A part of the picture, enlarged: from an eighth to all of its side."""
    height, width = picture.shape[1:]
    share = 0.125 + 0.875 * float(torch.rand((), generator=draw))
    h, w = max(1, round(share * height)), max(1, round(share * width))
    top = int(torch.randint(height - h + 1, (), generator=draw))
    left = int(torch.randint(width - w + 1, (), generator=draw))
    part = picture[None, :, top : top + h, left : left + w]
    return interpolate(part, (height, width), mode="bilinear")[0]


KINDS: tuple[Callable[[Tensor, torch.Generator], Tensor], ...] = (plain, halves, noise, cutting, cutting)


def colour(draw: torch.Generator) -> Tensor:
    """(3, 1, 1) in [-1, 1]."""
    return 2 * torch.rand((3, 1, 1), generator=draw) - 1


def estrange(picture: Tensor, share: float, draw: torch.Generator) -> Tensor:
    """The picture, or with a probability another one in its place.

    Args:
        picture: (3, height, width) in [-1, 1].
        share: the probability.
        draw: random numbers.

    Returns:
        (3, height, width) in [-1, 1].
    """
    if float(torch.rand((), generator=draw)) >= share:
        return picture
    return KINDS[int(torch.randint(len(KINDS), (), generator=draw))](picture, draw)
