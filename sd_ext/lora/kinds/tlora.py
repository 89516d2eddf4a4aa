"""T-LoRA: W' = W + alpha / rank * (P diag(l) Q - P0 diag(l0) Q0) (arXiv:2507.05964, as LyCORIS defines it).

`p` is (out, rank), `q` (rank, in), `l` (1, rank). P0, l0 and Q0, which training began from, are not in the file: they
are the first directions of W's own singular value decomposition, as LyCORIS takes them when it reads one. In training,
fewer directions act the more noise there is; in a file, as here, all act.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import InputError
from .given_weight import GivenWeight
from .kind import Tensors

if TYPE_CHECKING:
    from torch import Size, Tensor


class TloraKind(GivenWeight):
    """T-LoRA of linear layers and 1 x 1 convolutions."""

    name = "tlora"
    factors = (frozenset({"p", "q", "l"}),)
    kohya = {"q_layer.weight": "q", "p_layer.weight": "p", "lambda_layer": "l"}  # noqa: RUF012
    dotted = kohya

    def rank(self, tensors: Tensors) -> int:
        return tensors["l"].numel()

    def changed(self, tensors: Tensors, scale: float, weight: Tensor) -> Tensor:
        import torch

        p, q, values = tensors["p"].flatten(1), tensors["q"].flatten(1), tensors["l"].flatten()
        flat = weight.flatten(1)
        u, s, v = torch.linalg.svd(flat, full_matrices=False)
        rank = len(values)
        before = (u[:, :rank] * s[:rank]) @ v[:rank]
        return flat + scale * ((p * values) @ q - before)

    def shape(self, tensors: Tensors) -> Size | None:
        p, q = tensors["p"], tensors["q"]
        return (p.flatten(1).to("meta") @ q.flatten(1).to("meta")).reshape(p.shape[0], *q.shape[1:]).shape

    def check(self, tensors: Tensors, shape: Size | None) -> None:
        if not tensors["l"].numel() == tensors["q"].shape[0] == tensors["p"].shape[1]:
            raise InputError("tensors do not fit together: the ranks of p_layer, lambda_layer and q_layer differ")

    def check_weight(self, tensors: Tensors, shape: Size) -> None:
        if len(shape) > 2 and shape[2:].numel() > 1:
            raise InputError(f"T-LoRA of a convolution of {tuple(shape)} is not defined; only 1 x 1 ones are")
        super().check_weight(tensors, shape)
