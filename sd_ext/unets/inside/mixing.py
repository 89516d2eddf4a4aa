"""How the unconditional prediction u and the conditional one c are mixed, other than by u + w (c - u).

All functions are for tensors `(batch, channels, height, width)`, and treat each row of the batch by itself.
"""

from __future__ import annotations

import torch

EVERY = (1, 2, 3)
"""All dimensions but the batch."""


def project(difference: torch.Tensor, onto: torch.Tensor, parallel: float) -> torch.Tensor:
    """The part of a difference orthogonal to a tensor, plus a share of the part along it (APG, arXiv 2410.02416).

    Args:
        difference: what guidance adds.
        onto: the conditional prediction.
        parallel: the share, eta.
    """
    along = torch.nn.functional.normalize(onto.flatten(1), dim=1).view_as(onto)
    along = (difference * along).sum(EVERY, keepdim=True) * along
    return difference + (parallel - 1) * along


def shortened(difference: torch.Tensor, longest: float) -> torch.Tensor:
    """A difference scaled down to a length, where it is longer (APG)."""
    length = difference.pow(2).sum(EVERY, keepdim=True).sqrt()
    return difference * (longest / length.clamp_min(1e-12)).clamp_max(1)


def best_scale(unconditional: torch.Tensor, conditional: torch.Tensor) -> torch.Tensor:
    """The factor s that minimises |c - s u|^2, `(batch, 1, 1, 1)` (CFG-Zero*, arXiv 2503.18886)."""
    dot = (conditional * unconditional).sum(EVERY, keepdim=True)
    return dot / (unconditional.pow(2).sum(EVERY, keepdim=True) + 1e-8)


def rescaled(guided: torch.Tensor, conditional: torch.Tensor, share: float) -> torch.Tensor:
    """The guided prediction with the standard deviation of the conditional one, mixed with itself (arXiv 2305.08891,
    section 3.4).

    Args:
        guided, conditional: the two.
        share: of the rescaled one in the mixture, phi.
    """
    ratio = conditional.std(EVERY, keepdim=True) / guided.std(EVERY, keepdim=True)
    return guided * (share * ratio + (1 - share))


def thresholded(x0: torch.Tensor, within: torch.Tensor, percentile: float) -> torch.Tensor:
    """x0 in the range of another one, after Imagen's dynamic thresholding (arXiv 2205.11487, section 2.3).

    Where the percentile s of |x0| lies above that of the other, r, values beyond s are cut off and all are multiplied
    by r / s. In Imagen, whose pictures lie in [-1, 1], r is 1.

    Args:
        x0: the guided picture.
        within: the one whose range is kept.
        percentile: such as 0.995.
    """
    high, allowed = (
        torch.quantile(each.flatten(1).abs(), percentile, dim=1).view(-1, 1, 1, 1) for each in (x0, within)
    )
    high = torch.maximum(high, allowed)
    cut = torch.minimum(torch.maximum(x0, -high), high) * (allowed / high.clamp_min(1e-12))
    return torch.where(high > allowed, cut, x0)
