"""Factors as LyCORIS stores them: whole, as a product of two, or with a convolution's core between the two."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .kind import Tensors

if TYPE_CHECKING:
    from torch import Tensor


def factor(tensors: Tensors, name: str, core: str) -> Tensor:
    """One factor of LoHa or LoKr.

    Args:
        tensors: `name` itself; or `name_a` (out, rank) and `name_b` (rank, in); or with a core (rank, rank, k, k), of
            which it is the Tucker product, `name_a` (rank, out) and `name_b` (rank, in).
        name: "w1" or "w2".
        core: what the core is called.

    Returns:
        (out, in), or with a core (out, in, k, k).
    """
    import torch

    if name in tensors:
        return tensors[name]
    a, b = tensors[f"{name}_a"], tensors[f"{name}_b"]
    return torch.einsum("ijkl,ip,jr->prkl", tensors[core], a, b) if core in tensors else a @ b
