"""The random draws of a pass, with its pictures or latents."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Drawn:
    """The random draws of a pass, and its pictures or latents, on the CPU. Either `moments` or `pixels` is set.

    Args:
        noises: noise that samples the posterior, noise of the target, noise of the input: (b, c, h, w) each.
        t: timesteps (b,).
        texts: for each sample the index of its text; -1 for the empty text.
        flips: for each sample, whether it is mirrored.
        crops: for each sample, top and left of its random crop; None for the centre crop.
        moments: mean and standard deviation of the latents (b, 2, c, h, w), from the cache.
        pixels: pictures (b, 3, H, W) that are still to be encoded.
        mask: loss mask (b, 1, h, w); None without masked loss.
    """

    noises: tuple[Tensor, Tensor, Tensor]
    t: Tensor
    texts: list[int]
    flips: list[bool]
    crops: list[tuple[int, int] | None]
    moments: Tensor | None = None
    pixels: Tensor | None = None
    mask: Tensor | None = None
