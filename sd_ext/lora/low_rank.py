"""The best low-rank factors of a matrix, in Frobenius norm (Eckart and Young 1936), computed in float64.

The matrix may be given as a product of two factors; then it is never built.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError

# Squared singular values below this fraction of the largest are rounding errors of float32.
ROUNDING = 1e-13


@dataclass(frozen=True)
class Keep:
    """How much of a matrix to keep: the fewest directions (singular vectors) that meet every limit which is given.

    Args:
        rank: at most so many directions.
        energy: as many as needed for this fraction of the squared norm, above 0 to 1.
        sv_fro: as many as needed for this fraction of the norm itself (kohya's name): `energy` is its square.
        sv_cumulative: as many as needed for this fraction of the sum of the singular values.
        sv_ratio: those whose singular value is more than the largest divided by this number, which is above 1.
        conv_rank: in place of `rank` for convolutions larger than 1 x 1.

    Raises:
        InputError: none is given, or one is out of range.
    """

    rank: int | None = None
    energy: float | None = None
    sv_fro: float | None = None
    sv_cumulative: float | None = None
    sv_ratio: float | None = None
    conv_rank: int | None = None

    def __post_init__(self) -> None:
        if all(getattr(self, limit.name) is None for limit in fields(self)):
            raise InputError("say how much to keep: a rank, or a share of the energy")
        for name, rank in (("rank", self.rank), ("conv_rank", self.conv_rank)):
            if rank is not None and rank < 1:
                raise InputError(f"{name} {rank} cannot work; choose 1 or more")
        for name in ("energy", "sv_fro", "sv_cumulative"):
            share = getattr(self, name)
            if share is not None and not 0 < share <= 1:
                raise InputError(f"{name} {share} cannot work; choose a share above 0, at most 1")
        if self.sv_ratio is not None and not 1 < self.sv_ratio < math.inf:
            raise InputError(f"sv_ratio {self.sv_ratio} cannot work; choose a number above 1")

    def for_weight(self, shape: Sequence[int]) -> Keep:
        """The same for a weight of this shape: with `rank` as it holds there."""
        if self.conv_rank is None or all(side == 1 for side in shape[2:]):
            return self
        return replace(self, rank=self.conv_rank)

    def all_of(self, rank: int) -> bool:
        """Whether nothing of a matrix of this rank is to be left out, whatever its values."""
        by_value = self.energy, self.sv_fro, self.sv_cumulative, self.sv_ratio
        return self.rank is not None and rank <= self.rank and all(limit is None for limit in by_value)

    def count(self, energies: Tensor) -> int:
        """How many directions to keep.

        Args:
            energies: squared singular values, the largest first.
        """
        count = int((energies > ROUNDING * energies[0]).sum())
        values = energies.sqrt()
        for parts, share in (
            (energies, self.energy),
            (energies, None if self.sv_fro is None else self.sv_fro**2),
            (values, self.sv_cumulative),
        ):
            if share is not None:
                shares = parts.cumsum(0) / parts.sum()
                count = min(count, 1 + int((shares < share * (1 - ROUNDING)).sum()))
        if self.sv_ratio is not None:
            count = min(count, int((values > values[0] / self.sv_ratio).sum()))
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
