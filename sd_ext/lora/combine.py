"""How the changes that several LoRAs make to one weight become one change.

    sum         s_1 d_1 + s_2 d_2 + ...
    cosine      the sum, where what LoRAs have in common counts once: each strength is divided by 1 + the cosines (above
                0) of its change with those of the others. Equal changes are averaged, unrelated ones are added.
    magnitude   the sum, of the largest values of each change only
    ties        of the largest values of each change: for each value of the weight the sign with the larger total is
                elected, and the mean taken of the changes with that sign (TIES-Merging, arXiv:2306.01708, algorithm 1)
    dare        the sum, of a random part of the values of each change, divided by its share (DARE, arXiv:2311.03099,
                equation 3)
    dare_ties   `ties` of such parts

d_i is the change W' - W by LoRA i, and s_i its strength, which multiplies what is left of the change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError, UnknownNameError

EXACT = "sum", "cosine"  # those of which low-rank changes have a low-rank result
PRUNING = "magnitude", "ties", "dare", "dare_ties"
METHODS = *EXACT, *PRUNING
DENSITY = 0.5


@dataclass(frozen=True)
class Combine:
    """How to combine changes of one weight.

    Args:
        method: one of `METHODS`.
        density: the share of each change's values that is kept, above 0 to 1; None is 0.5. Only for `PRUNING`.
        seed: of the random choice in `dare` and `dare_ties`, which depends besides only on the module's name and on a
            LoRA's place among those given.

    Raises:
        UnknownNameError: no such method.
        InputError: the density is out of range, or given for a method that keeps all values.
    """

    method: str = "sum"
    density: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UnknownNameError("way to combine LoRAs", self.method, METHODS)
        if self.density is not None and self.method in EXACT:
            raise InputError(f"{self.method} keeps all values; a density goes with {', '.join(PRUNING)}")
        if self.density is not None and not 0 < self.density <= 1:
            raise InputError(f"density {self.density} cannot work; choose a share above 0, at most 1")

    @property
    def exact(self) -> bool:
        """Whether low-rank changes have a low-rank result."""
        return self.method in EXACT


SUM = Combine()


def combined(changes: Sequence[Tensor], strengths: Sequence[float], how: Combine, module: str) -> Tensor:
    """Combine changes by one of `PRUNING`.

    Args:
        changes: float tensors of one shape, one for each LoRA; None of them is modified.
        strengths: one for each.
        how: the method.
        module: the module's name, on which random choices depend.
    """
    density = DENSITY if how.density is None else how.density
    if how.method.startswith("dare"):
        kept = [_random(change, density, f"{how.seed} {place} {module}") for place, change in enumerate(changes)]
    else:
        kept = [largest(change, density) for change in changes]
    parts = torch.stack([strength * change for strength, change in zip(strengths, kept, strict=True)])
    return _elected_mean(parts) if how.method.endswith("ties") else parts.sum(0)


def largest(change: Tensor, density: float) -> Tensor:
    """The change with only this share of its values, those of the largest magnitude, and zeros elsewhere."""
    flat = change.flatten()
    count = max(1, int(density * flat.numel()))
    places = flat.abs().topk(count).indices
    made = torch.zeros_like(flat)
    made[places] = flat[places]
    return made.reshape(change.shape)


def _random(change: Tensor, density: float, stream: str) -> Tensor:
    """The change with only this share of its values, chosen at random, divided by the share; its mean is the change."""
    seed = int.from_bytes(hashlib.sha256(stream.encode()).digest()[:7], "big")
    draws = torch.rand(change.shape, generator=torch.Generator().manual_seed(seed))
    return torch.where(draws < density, change.cpu() / density, 0.0)


def _elected_mean(parts: Tensor) -> Tensor:
    """Of each value the mean over those, along the first axis, that have the sign of the sum."""
    agree = (parts.sign() == parts.sum(0).sign()) & (parts != 0)
    return (parts * agree).sum(0) / agree.sum(0).clamp_min(1)


def shared(inner: Tensor, strengths: Sequence[float]) -> list[float]:
    """The strengths that `cosine` gives to changes.

    Args:
        inner: (n, n), the inner products of the n changes at strength 1.
        strengths: one for each.

    Returns:
        One for each.
    """
    signs = torch.tensor(strengths, dtype=inner.dtype).sign()
    norms = inner.diagonal().clamp_min(0).sqrt()
    cosines = inner * signs[:, None] * signs / (norms[:, None] * norms).clamp_min(torch.finfo(inner.dtype).tiny)
    others = cosines.clamp(0, 1).fill_diagonal_(0).sum(1)
    return [strength / (1 + float(each)) for strength, each in zip(strengths, others, strict=True)]
