"""Aspect-ratio buckets: the sizes that pictures are brought to, so that batches can be made of equal ones.

The buckets of a resolution r are, for each height that is a multiple of `step`, the widest width with height x width at
most r^2 (and the same with height and width exchanged), as long as neither is more than `max_ratio` times the other. A
picture goes to the one of nearest aspect ratio on a logarithmic scale, is scaled to cover it and cut to fit (NovelAI
2022, "Aspect ratio bucketing").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from sd_ext.errors import InputError

Size = tuple[int, int]  # height, width


def cover(original: Size, size: Size) -> Size:
    """The least scaled size of a picture that covers `size`; one of its sides is that of `size`."""
    scale = max(wanted / given for wanted, given in zip(size, original, strict=True))
    height, width = (max(wanted, round(given * scale)) for wanted, given in zip(size, original, strict=True))
    return height, width


def room(original: Size, size: Size) -> tuple[int, int]:
    """The largest top and left that a crop can have: by what the scaled picture is larger than `size`."""
    height, width = cover(original, size)
    return height - size[0], width - size[1]


def centre(original: Size, size: Size) -> tuple[int, int]:
    """Top and left of the crop at the centre, in pixels of the scaled picture."""
    top, left = room(original, size)
    return top // 2, left // 2


@dataclass(frozen=True)
class Buckets:
    """The sizes for pictures to train on.

    Args:
        resolutions: r for each; a picture is a sample at each resolution that it is large enough for.
        step: heights and widths are multiples of it: of the autoencoder's and U-Net's downscaling, in pixels.
        max_ratio: the longer side is at most so many times the shorter one.
        enabled: False for squares of the resolutions, whatever the picture.
        upscale: enlarge pictures that are smaller than the buckets of the least resolution. Otherwise they get a
            smaller bucket of their own: their size, rounded down. (Squares always enlarge.)

    Raises:
        InputError: numbers that allow no bucket.
    """

    resolutions: tuple[int, ...]
    step: int = 64
    max_ratio: float = 2.0
    enabled: bool = True
    upscale: bool = False

    def __post_init__(self) -> None:
        if not self.resolutions or min(self.resolutions) < 1 or self.step < 1:
            raise InputError(f"resolutions {self.resolutions} and step {self.step} must be at least 1 pixel")
        if not self.max_ratio >= 1:
            raise InputError(f"the longest bucket's max_ratio is {self.max_ratio}; it must be at least 1")
        small = [r for r in self.resolutions if r < self.step]
        if small and self.enabled:
            raise InputError(f"resolution {small[0]} is below the buckets' step of {self.step}; lower the step")
        if not self.enabled and (odd := [r for r in self.resolutions if r % self.step]):
            raise InputError(f"squares of {odd[0]} pixels are not a multiple of {self.step}")
        object.__setattr__(self, "resolutions", tuple(sorted(set(self.resolutions))))

    @cached_property
    def sizes(self) -> dict[int, list[Size]]:
        """For each resolution its buckets (height, width), from tall to wide."""
        return {r: self._ladder(r) if self.enabled else [(r, r)] for r in self.resolutions}

    def _down(self, length: float) -> int:
        return int(length // self.step) * self.step

    def _ladder(self, resolution: int) -> list[Size]:
        square = self._down(resolution)
        found = {(square, square)}
        for short in range(self.step, square + 1, self.step):
            long = self._down(resolution**2 // short)
            if long <= self.max_ratio * short:
                found |= {(short, long), (long, short)}
        return sorted(found, key=lambda size: (size[1] / size[0], size[0] * size[1]))

    def nearest(self, height: int, width: int, resolution: int) -> Size:
        """The bucket whose aspect ratio is nearest to a picture's; of equal ones the largest."""
        ratio = math.log(width / height)
        return min(self.sizes[resolution], key=lambda s: (abs(math.log(s[1] / s[0]) - ratio), -s[0] * s[1]))

    def _own(self, height: int, width: int, resolution: int) -> Size | None:
        """A picture's size, rounded down to what a bucket may be; None where that is nothing."""
        short = min(self._down(min(height, width)), self._down(resolution))
        if not short:
            return None
        long = min(self._down(max(height, width)), self._down(max(self.max_ratio * short, short)))
        long = max(short, min(long, self._down(resolution**2 // short)))
        return (short, long) if height <= width else (long, short)

    def assign(self, height: int, width: int) -> list[Size]:
        """The sizes (height, width) at which a picture is a sample; none if it is smaller than `step`."""
        nearest = [self.nearest(height, width, r) for r in self.resolutions]
        sizes = [(h, w) for h, w in nearest if h <= height and w <= width]
        if not sizes:
            small = nearest[0] if self.upscale or not self.enabled else self._own(height, width, self.resolutions[0])
            sizes = [small] if small else []
        return list(dict.fromkeys(sizes))
