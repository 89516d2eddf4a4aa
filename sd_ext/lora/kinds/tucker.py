"""Factors of LoHa and LoKr as LyCORIS stores them: whole, as a product of two, or with a convolution's core between."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .kind import Tensors

if TYPE_CHECKING:
    from torch import Tensor


def factor(tensors: Tensors, name: str, core: str) -> Tensor:
    """Compute one factor of LoHa or LoKr from its stored tensors.

    Args:
        tensors: they contain `name` itself; or `name_a` (out, rank) and `name_b` (rank, in), to be multiplied; or these
            two as (rank, out) and (rank, in) with a core (rank, rank, k, k), for a Tucker product.
        name: "w1" or "w2".
        core: the name of the core.

    Returns:
        (out, in), or with a core (out, in, k, k).
    """
    import torch

    if name in tensors:
        return tensors[name]
    a, b = tensors[f"{name}_a"], tensors[f"{name}_b"]
    return torch.einsum("ijkl,ip,jr->prkl", tensors[core], a, b) if core in tensors else a @ b
