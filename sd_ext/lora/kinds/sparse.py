"""A few single weights beside the factors: LyCORIS's `bias_indices`, `bias_values` and `bias_size`.

They are what is left of a difference after a low-rank kind took its part, its largest entries only. In memory, `sparse`
is the whole matrix (out, in) or (out, in * k * k).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import InputError
from .kind import Kind, Tensors
from .lora import LoraKind

if TYPE_CHECKING:
    from torch import Size, Tensor

STORED = {f"bias_{name}": f"bias_{name}" for name in ("indices", "values", "size")}


class SparseKind(Kind):
    """Another kind, and single weights added to its product.

    Args:
        inner: the kind that computes the rest; None is LoRA.
    """

    name = "sparse"
    beside = "sparse"
    kohya = STORED
    dotted = STORED

    def __init__(self, inner: Kind | None = None):
        self.inner = inner or LoraKind()
        if inner is not None:
            self.name = f"{inner.name}+{self.name}"
        self.factors = tuple(tensors | {self.beside} for tensors in self.inner.factors) if inner else ()

    def over(self, kind: Kind) -> SparseKind:
        return SparseKind(kind)

    def product(self, tensors: Tensors) -> Tensor:
        product = self.inner.product(tensors)
        return product + tensors["sparse"].to(product).reshape(product.shape)

    def rank(self, tensors: Tensors) -> int:
        return self.inner.rank(tensors)

    def scale(self, tensors: Tensors, alpha: float) -> float:
        return self.inner.scale(tensors, alpha)

    def check(self, tensors: Tensors, shape: Size | None) -> None:
        self.inner.check(tensors, shape)

    def complete(self, tensors: Tensors) -> dict[str, Tensor]:
        import torch

        made = dict(tensors)
        if not made.keys() & STORED.keys():
            return made
        if not made.keys() >= STORED.keys():
            raise InputError(f"of {', '.join(STORED)} only {', '.join(sorted(made.keys() & STORED.keys()))} is there")
        indices, values, size = (made.pop(name) for name in STORED)
        rows, columns = [int(side) for side in size.flatten().tolist()] if size.numel() == 2 else (0, 0)
        places = indices.long()
        inside = (
            places.ndim == 2 and len(places) == 2 and places.shape[1] == values.numel() and 0 < rows * columns < 2**31
        )
        if not inside or (
            values.numel() and (places.min() < 0 or (places.amax(1) >= torch.tensor([rows, columns])).any())
        ):
            raise InputError(f"bias_indices {tuple(indices.shape)} are no places in a matrix of {rows} x {columns}")
        whole = torch.zeros(rows, columns, dtype=values.dtype)
        whole[places[0], places[1]] = values.flatten()
        made["sparse"] = whole
        return made

    def for_kohya(self, tensors: Tensors, of: str = "weight") -> dict[str, Tensor]:
        import torch

        whole = tensors["sparse"].detach().flatten(1)
        places = whole.nonzero().T.contiguous()
        kind = torch.int16 if max(whole.shape) < 2**15 else torch.int32
        stored = places.to(kind), whole[places[0], places[1]], torch.tensor(whole.shape, dtype=kind)
        return {**self.inner.for_kohya(tensors, of), **dict(zip(STORED, stored, strict=True))}
