"""The best low-rank factors of a matrix, in Frobenius norm (Eckart and Young 1936), computed in float64.

The matrix may be given as a product of two factors; then it is never built.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError

# Squared singular values below this fraction of the largest are rounding errors of float32.
ROUNDING = 1e-13


@dataclass(frozen=True)
class Keep:
    """How much of a matrix to keep.

    Args:
        rank: at most so many directions (singular vectors); None for no limit.
        energy: only as many directions as needed for this fraction of the squared norm, above 0 to 1; None for no
            limit.

    Raises:
        InputError: both are None, or one is out of range.
    """

    rank: int | None = None
    energy: float | None = None

    def __post_init__(self) -> None:
        if self.rank is None and self.energy is None:
            raise InputError("say how much to keep: a rank, or a share of the energy")
        if self.rank is not None and self.rank < 1:
            raise InputError(f"rank {self.rank} cannot work; choose 1 or more")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise InputError(f"energy {self.energy} cannot work; choose a share above 0, at most 1")

    def count(self, energies: Tensor) -> int:
        """How many directions to keep.

        Args:
            energies: squared singular values, the largest first.
        """
        count = int((energies > ROUNDING * energies[0]).sum())
        if self.energy is not None:
            shares = energies.cumsum(0) / energies.sum()
            count = min(count, 1 + int((shares < self.energy * (1 - ROUNDING)).sum()))
        return max(1, min(count, self.rank or count))


class Factors(NamedTuple):
    """`up` (out, rank) and `down` (rank, in), float32, and the relative Frobenius error of their product."""

    up: Tensor
    down: Tensor
    error: float


def truncate(matrix: Tensor, keep: Keep) -> Factors:
    """Factor a matrix (out, in).

    Projects onto the leading eigenvectors of the smaller Gram matrix, which is faster than an SVD; the directions that
    are kept are exact.
    """
    whole = matrix.detach().double()
    if whole.shape[0] > whole.shape[1]:
        up, down, error = truncate(matrix.T, keep)
        return Factors(down.T.contiguous(), up.T.contiguous(), error)
    energies, directions = torch.linalg.eigh(whole @ whole.T)
    energies, directions = energies.flip(0).clamp_min(0), directions.flip(1)
    if not energies[0]:
        return Factors(torch.zeros(whole.shape[0], 1), torch.zeros(1, whole.shape[1]), 0.0)
    count = keep.count(energies)
    kept = directions[:, :count]
    return _balanced(kept, kept.T @ whole, energies, count)


def truncate_product(up: Tensor, down: Tensor, keep: Keep) -> Factors:
    """Factor the product of `up` (out, rank) and `down` (rank, in), through a matrix of only rank x rank."""
    if up.shape[1] >= min(up.shape[0], down.shape[1]):
        return truncate(up.double() @ down.double(), keep)
    left, above = torch.linalg.qr(up.detach().double())
    right, below = torch.linalg.qr(down.detach().double().T)
    u, values, v = torch.linalg.svd(above @ below.T)
    if not values[0]:
        return Factors(up[:, :1].float(), torch.zeros(1, down.shape[1]), 0.0)
    energies = values.square()
    count = keep.count(energies)
    return _balanced(left @ u[:, :count], values[:count, None] * (v[:count] @ right.T), energies, count)


def _balanced(up: Tensor, down: Tensor, energies: Tensor, count: int) -> Factors:
    """Scale both factors to equal norms in every direction, as training produces them; best for low precision too."""
    scales = torch.linalg.vector_norm(down, dim=1).clamp_min(torch.finfo(down.dtype).tiny).sqrt()
    error = float((energies[count:].sum() / energies.sum()).sqrt())
    return Factors((up * scales).float().contiguous(), (down / scales[:, None]).float().contiguous(), error)
