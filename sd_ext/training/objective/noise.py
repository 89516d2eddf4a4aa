"""Variants of the training noise: offset noise, pyramid noise, input perturbation.

Each sample's noise is drawn from its own generator, so it does not depend on how a step's samples are divided into
batches. White noise is always drawn first: a variant of strength 0 gives exactly the same bits as white noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.nn import functional

from sd_ext.training.objective.settings import NoiseSettings

WHITE = NoiseSettings()


def offset_noise(eps: Tensor, strength: float, generator: Generator) -> Tensor:
    """Offset noise: eps + strength n, with one n ~ N(0, 1) for each channel.

    A network trained with it learns to change a picture's mean brightness and colour (Guttenberg 2023, "Diffusion with
    Offset Noise", crosslabs.org). The variance becomes 1 + strength^2, as published.

    Args:
        eps: white noise (c, h, w).
        strength: 0 returns `eps`.
        generator: draws n.

    Returns:
        (c, h, w).
    """
    if not strength:
        return eps
    return eps + strength * torch.randn((len(eps), 1, 1), generator=generator, device=generator.device).to(eps)


def pyramid_noise(eps: Tensor, iterations: int, discount: float, generator: Generator) -> Tensor:
    """Pyramid noise: eps plus noise of lower and lower resolutions, each enlarged bilinearly.

    Level i = 0, 1, ... is r^i times smaller, with r drawn uniformly from (2, 4) for each level, and is multiplied by
    discount^i; the first level that has only one row or column is the last (Whitaker 2023, "Multi-Resolution Noise for
    Diffusion Model Training", wandb.ai). The sum at each pixel is divided by its standard deviation, which is known,
    so that each pixel is N(0, 1). (Dividing by the standard deviation of the drawn numbers, as other implementations
    do, would make the samples of a batch depend on each other.)

    Args:
        eps: white noise (c, h, w).
        iterations: most levels.
        discount: strength of each level relative to the one before.
        generator: draws r and the levels.

    Returns:
        (c, h, w).
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
    """The matrix (large, small) of linear interpolation from `small` to `large` pixels (align_corners=False)."""
    return functional.interpolate(torch.eye(small)[None], size=large, mode="linear")[0].T


def perturbed(eps: Tensor, gamma: float, generator: Generator) -> Tensor:
    """Input perturbation: eps + gamma eps', the noise in the network's input while the target stays eps.

    The network learns to correct errors in its input, which also occur when it samples (Ning et al. 2023, arXiv
    2301.11706).

    Args:
        eps: noise of any shape.
        gamma: strength, customarily 0.1; 0 returns `eps`.
        generator: draws eps' ~ N(0, 1).

    Returns:
        Noise of the same shape.
    """
    if not gamma:
        return eps
    return eps + gamma * torch.randn(eps.shape, generator=generator, device=generator.device).to(eps)


def draw_noise(
    shape: Sequence[int], generators: Sequence[Generator], settings: NoiseSettings = WHITE
) -> tuple[Tensor, Tensor]:
    """Draw the noise of a batch.

    Args:
        shape: (c, h, w) of a sample.
        generators: one for each of the b samples; a sample's noise depends on its generator only.
        settings: strengths of offset noise, pyramid noise and input perturbation.

    Returns:
        (noise of the target, noise of the input x_t), (b, c, h, w) each; equal without input perturbation.
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
