"""Near-duplicates: pictures that are the same but for their size, compression, a small change, or mirroring."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

SIDE = 16  # pictures are compared at this many pixels squared
ALIKE, OF_CONTRAST = 1.0, 0.05  # levels of 255 that two may differ by, and in addition this share of the contrast
ROWS = 512  # pictures that are compared with all others at once


@dataclass(frozen=True)
class Twin:
    """The first picture that a picture is nearly the same as.

    Args:
        of: its number.
        mirrored: whether it must be mirrored for that.
    """

    of: int
    mirrored: bool


def small(pixels: Tensor) -> np.ndarray:
    """A picture (3, h, w) in [-1, 1] at 16 x 16 pixels, in levels from 0 to 255: (3, 16, 16)."""
    return ((adaptive_avg_pool2d(pixels, SIDE) + 1) * 127.5).numpy().astype(np.float32)


def find_twins(pictures: np.ndarray) -> dict[int, Twin]:
    """Find near-duplicates.

    Two pictures are nearly the same if, at 16 x 16 pixels, they differ by less than one level of 255 and 5 % of the
    later one's contrast (root mean square).

    Args:
        pictures: from `small`, (n, 3, 16, 16).

    Returns:
        Number of a picture -> the first one before it that it is nearly the same as.
    """
    count = len(pictures)
    if not count:
        return {}
    centred = torch.from_numpy(pictures - pictures.mean(axis=(0, 2, 3), keepdims=True))
    flat, mirror = centred.flatten(1), centred.flip(-1).flatten(1)
    size, length = flat.square().sum(1), flat.shape[1]
    contrast = torch.from_numpy(pictures).flatten(2).std(dim=2).amax(1)
    allowed = (ALIKE + OF_CONTRAST * contrast).square() * length
    found: dict[int, Twin] = {}
    for start in range(0, count, ROWS):
        rows = slice(start, min(count, start + ROWS))
        before = torch.arange(count)[None, : rows.stop] < torch.arange(start, rows.stop)[:, None]
        for mirrored, theirs in ((False, flat), (True, mirror)):
            apart = size[rows, None] + size[None, : rows.stop] - 2 * flat[rows] @ theirs[: rows.stop].T
            near = before & (apart <= allowed[rows, None])
            for row in near.any(1).nonzero().flatten().tolist():
                found.setdefault(start + row, Twin(int(near[row].int().argmax()), mirrored))
    return found
