"""Noise other than white: with an offset, of several resolutions, perturbed.

A sample's noise is a function of its own generator, so it does not matter how a step's samples are cut into batches.
Everywhere the white part is drawn first: a kind of noise with strength 0 is white noise, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional

from sd_ext.training.objective.settings import NoiseSettings

WHITE = NoiseSettings()


def offset_noise(eps: Tensor, strength: float, generator: Generator) -> Tensor:
    """eps + strength n, one n ~ N(0, 1) per channel: (c, h, w) to the same.

    A network that sees it learns to move a picture's mean (Guttenberg 2023, "Diffusion with Offset Noise",
    crosslabs.org). The variance becomes 1 + strength^2, as published.
    """
    if not strength:
        return eps
    return eps + strength * torch.randn((len(eps), 1, 1), generator=generator, device=generator.device).to(eps)


def pyramid_noise(eps: Tensor, iterations: int, discount: float, generator: Generator) -> Tensor:
    """eps plus noise of lower and lower resolutions, each enlarged bilinearly: (c, h, w) to the same.

    Level i = 0, 1, ... is r^i times smaller, r uniform in (2, 4) and drawn anew each level, and counts discount^i; a
    level of one row or column is the last (Whitaker 2023, "Multi-Resolution Noise for Diffusion Model Training",
    wandb.ai). Each pixel is divided by its own standard deviation, so that it is N(0, 1); to divide by that of the
    drawn numbers, as is usual, ties the pixels of a batch together.
    """
    (channels, *size), variance = eps.shape, torch.ones(eps.shape[1:], device=eps.device)
    total = eps
    for level in range(iterations):
        r = 2 + 2 * torch.rand((), generator=generator, device=generator.device).item()
        small = [max(1, int(side / r**level)) for side in size]
        coarse = torch.randn((channels, *small), generator=generator, device=generator.device).to(eps)
        rows, columns = (_enlarge(a, b).to(eps) for a, b in zip(small, size, strict=True))
        total = total + discount**level * (rows @ coarse @ columns.T)
        variance = variance + discount ** (2 * level) * rows.square().sum(1)[:, None] * columns.square().sum(1)
        if 1 in small:
            break
    return total / variance.sqrt().to(eps)


def _enlarge(small: int, large: int) -> Tensor:
    """The matrix (large, small) of linear interpolation, pixel centres at halves."""
    return functional.interpolate(torch.eye(small)[None], size=large, mode="linear")[0].T


def perturbed(eps: Tensor, gamma: float, generator: Generator) -> Tensor:
    """The noise the network sees when eps is its target: eps + gamma eps' (Ning et al. 2023, arXiv 2301.11706).

    It learns to correct inputs that are off, as its own are when it samples; 0.1 is customary. Any shape.
    """
    if not gamma:
        return eps
    return eps + gamma * torch.randn(eps.shape, generator=generator, device=generator.device).to(eps)


def draw_noise(
    shape: Sequence[int], generators: Sequence[Generator], settings: NoiseSettings = WHITE
) -> tuple[Tensor, Tensor]:
    """The noise of samples.

    Args:
        shape: (c, h, w) of a sample.
        generators: one for each sample; its noise depends on nothing else.
        settings: what is added to white noise.

    Returns:
        The noise that is the target, and the noise that is in x_t: (b, c, h, w) each; the same without perturbation.
    """
    in_target, in_input = [], []
    for generator in generators:
        eps = torch.randn(tuple(shape), generator=generator, device=generator.device)
        if settings.pyramid_iterations:
            eps = pyramid_noise(eps, settings.pyramid_iterations, settings.pyramid_discount, generator)
        eps = offset_noise(eps, settings.offset_noise, generator)
        in_target.append(eps)
        in_input.append(perturbed(eps, settings.input_perturbation, generator))
    return torch.stack(in_target), torch.stack(in_input)
