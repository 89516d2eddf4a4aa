"""OFT: W' = R W, with R orthogonal, of small blocks (arXiv:2306.07280); BOFT, a product of such (arXiv:2311.06243).

Of each block the file holds a matrix B; with Q = B - B^T, R = (I + Q) (I - Q)^-1 (Cayley). `blocks` is (blocks, b, b)
for OFT ("Diag-OFT"), (stages, blocks, b, b) for BOFT, whose stages mix outputs that lie ever farther apart. `rescale`
(out, 1), where it is there, multiplies the outputs afterwards. Alpha is no strength here: alpha times the number of
outputs is the largest norm that all Q together may have; 0 for no limit. As in kohya's trainer and LyCORIS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import InputError
from .given_weight import GivenWeight
from .kind import Tensors

if TYPE_CHECKING:
    from torch import Size, Tensor

SMALL = 1e-8  # added to the norm of Q, as everywhere


class OftKind(GivenWeight):
    """OFT and BOFT of the outputs."""

    name = "oft"
    factors = (frozenset({"blocks"}), frozenset({"blocks", "rescale"}))
    kohya = {"oft_blocks": "blocks", "oft_diag": "blocks", "rescale": "rescale"}  # noqa: RUF012
    dotted = kohya
    network_args = {"algo": "diag-oft"}  # noqa: RUF012

    def scale(self, tensors: Tensors, alpha: float) -> float:
        return alpha

    def usual_alpha(self, tensors: Tensors) -> float:
        return 0.0

    def outputs(self, tensors: Tensors) -> int | None:
        blocks = tensors["blocks"]
        return blocks.shape[-3] * blocks.shape[-1]

    def check(self, tensors: Tensors, shape: Size | None) -> None:
        blocks, rescale = tensors["blocks"], tensors.get("rescale")
        if blocks.ndim not in (3, 4) or blocks.shape[-1] != blocks.shape[-2]:
            raise InputError(f"blocks are {tuple(blocks.shape)}, not (blocks, b, b) or (stages, blocks, b, b)")
        if blocks.ndim == 4 and blocks.shape[-1] % 2:
            raise InputError(f"blocks of {blocks.shape[-1]} x {blocks.shape[-1]} have no halves, which BOFT exchanges")
        if rescale is not None and rescale.numel() != self.outputs(tensors):
            raise InputError(f"rescale {tuple(rescale.shape)} does not fit blocks of {tuple(blocks.shape)}")

    def check_weight(self, tensors: Tensors, shape: Size) -> None:
        super().check_weight(tensors, shape)
        blocks = tensors["blocks"]
        if blocks.ndim == 4 and shape[0] % (2 ** (blocks.shape[0] - 1) * blocks.shape[-1]):
            raise InputError(f"{blocks.shape[0]} stages cannot mix {shape[0]} outputs in blocks of {blocks.shape[-1]}")

    def changed(self, tensors: Tensors, scale: float, weight: Tensor) -> Tensor:
        blocks = tensors["blocks"]
        rotations = cayley(blocks - blocks.mT, scale * weight.shape[0])
        flat = weight.flatten(1)
        after = diagonal(rotations.mT, flat) if blocks.ndim == 3 else butterfly(rotations, flat)
        return after * tensors["rescale"].reshape(-1, 1) if "rescale" in tensors else after


def cayley(skew: Tensor, limit: float = 0.0) -> Tensor:
    """The rotations (I + Q) (I - Q)^-1.

    Args:
        skew: Q (..., b, b), with Q^T = -Q.
        limit: the largest norm of all of them together; 0 for none.
    """
    import torch

    if limit > 0:
        norm = torch.linalg.vector_norm(skew) + SMALL
        skew = skew * (limit / norm).clamp_max(1.0)
    one = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    return torch.linalg.solve(one - skew, one + skew, left=False)


def diagonal(rotations: Tensor, rows: Tensor) -> Tensor:
    """A block-diagonal matrix (blocks, b, b) times a matrix (blocks * b, n)."""
    return (rotations @ rows.unflatten(0, rotations.shape[:2])).flatten(0, 1)


def butterfly(rotations: Tensor, rows: Tensor) -> Tensor:
    """The stages (stages, blocks, b, b) one after the other, times a matrix (out, n).

    In stage i, a block takes the outputs of two runs of 2^i b / 2 outputs in turn.
    """
    import torch

    for stage, rotation in enumerate(rotations):
        run = 2**stage * rotation.shape[-1] // 2
        order = torch.arange(len(rows), device=rows.device).reshape(-1, 2, run).mT.flatten()
        mixed = torch.empty_like(rows)
        mixed[order] = diagonal(rotation, rows[order])
        rows = mixed
    return rows
