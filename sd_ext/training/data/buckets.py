"""Aspect-ratio buckets: the few sizes that pictures are resized and cropped to, so that batches hold equal sizes.

The buckets of a resolution r are, for each height that is a multiple of `step`, the widest width with height x width at
most r^2 (and the same with height and width exchanged), as long as neither is more than `max_ratio` times the other. A
picture goes to the bucket whose aspect ratio is nearest on a logarithmic scale; it is scaled until it covers that
bucket and cropped to it (NovelAI 2022, "Aspect ratio bucketing").
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from sd_ext.errors import InputError

Size = tuple[int, int]  # height, width


def cover(original: Size, size: Size) -> Size:
    """The smallest size, at the picture's own proportions, that covers `size`.

    Args:
        original: height and width of the picture, in pixels.
        size: height and width to cover, in pixels.

    Returns:
        Height and width after scaling: at least those of `size`, and one of them equal to it.
    """
    scale = max(wanted / given for wanted, given in zip(size, original, strict=True))
    height, width = (max(wanted, round(given * scale)) for wanted, given in zip(size, original, strict=True))
    return height, width


def room(original: Size, size: Size) -> tuple[int, int]:
    """The largest top and left of a crop, in pixels: how much taller and wider than `size` the scaled picture is."""
    height, width = cover(original, size)
    return height - size[0], width - size[1]


def centre(original: Size, size: Size) -> tuple[int, int]:
    """Top and left of the centre crop, in pixels of the scaled picture."""
    top, left = room(original, size)
    return top // 2, left // 2


@dataclass(frozen=True)
class Buckets:
    """Chooses the sizes at which a picture is trained on.

    Args:
        resolutions: in pixels; a bucket of resolution r has an area of at most r^2. A picture becomes one sample for
            each resolution that it is large enough for.
        step: heights and widths are multiples of this, in pixels. It must itself be a multiple of the downscaling of
            autoencoder and U-Net.
        max_ratio: the longer side is at most this many times the shorter one.
        enabled: False to use squares of the given resolutions for all pictures.
        upscale: enlarge pictures that are smaller than the buckets of the lowest resolution. If False, they get a
            smaller bucket: their own size, rounded down to multiples of `step`. (Squares are always enlarged to.)

    Raises:
        InputError: the arguments allow no bucket.
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
        """The buckets (height, width) of each resolution, from tall to wide."""
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
        """The bucket whose aspect ratio is nearest to the picture's; of equally near ones, the largest."""
        ratio = math.log(width / height)
        return min(self.sizes[resolution], key=lambda s: (abs(math.log(s[1] / s[0]) - ratio), -s[0] * s[1]))

    def _own(self, height: int, width: int, resolution: int) -> Size | None:
        """The picture's own size, rounded down to a valid bucket; None if a side would be 0."""
        short = min(self._down(min(height, width)), self._down(resolution))
        if not short:
            return None
        long = min(self._down(max(height, width)), self._down(max(self.max_ratio * short, short)))
        long = max(short, min(long, self._down(resolution**2 // short)))
        return (short, long) if height <= width else (long, short)

    def assign(self, height: int, width: int) -> list[Size]:
        """The sizes at which a picture is trained on.

        Args:
            height, width: of the picture, in pixels.

        Returns:
            Different sizes (height, width) in pixels, one sample each; empty if the picture is smaller than `step`.
        """
        nearest = [self.nearest(height, width, r) for r in self.resolutions]
        sizes = [(h, w) for h, w in nearest if h <= height and w <= width]
        if not sizes:
            small = nearest[0] if self.upscale or not self.enabled else self._own(height, width, self.resolutions[0])
            sizes = [small] if small else []
        return list(dict.fromkeys(sizes))
