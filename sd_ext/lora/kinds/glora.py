"""GLoRA: W' = W + alpha / rank * (W a1 a2 + b1 b2) (arXiv:2306.07967, as LyCORIS defines it).

`a1` is (in, rank), `a2` (rank, in), `b1` (out, rank), `b2` (rank, in); of a convolution followed by 1 x 1, and `b2` by
k x k. With a core `bm` (rank, rank, k, k), `b2` is 1 x 1. Early files have `a1` and `a2`, and `b1` and `b2`, exchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import InputError
from .given_weight import GivenWeight
from .kind import Tensors

if TYPE_CHECKING:
    from torch import Size, Tensor

PLAIN = frozenset({"a1", "a2", "b1", "b2"})


class GloraKind(GivenWeight):
    """GLoRA without its bias terms, which LyCORIS leaves out."""

    name = "glora"
    factors = (PLAIN,)
    kohya = {f"{name}.weight": name for name in ("a1", "a2", "b1", "b2", "bm")}  # noqa: RUF012
    dotted = kohya

    def rank(self, tensors: Tensors) -> int:
        return tensors["b2"].shape[0]

    def added(self, tensors: Tensors) -> Tensor:
        """What is added to any weight: b1 b2, in the weight's shape."""
        b1, b2 = tensors["b1"], tensors["b2"]
        return (b1.flatten(1) @ b2.flatten(1)).reshape(b1.shape[0], *b2.shape[1:])

    def changed(self, tensors: Tensors, scale: float, weight: Tensor) -> Tensor:
        import torch

        turned = torch.einsum("oi...,ij->oj...", weight, tensors["a1"].flatten(1) @ tensors["a2"].flatten(1))
        return weight + scale * (turned + self.added(tensors).reshape(weight.shape))

    def shape(self, tensors: Tensors) -> Size | None:
        return self.added({name: tensor.detach().to("meta") for name, tensor in tensors.items()}).shape

    def check(self, tensors: Tensors, shape: Size | None) -> None:
        a1, a2 = tensors["a1"].flatten(1).shape, tensors["a2"].flatten(1).shape
        inputs = tensors["b2"].shape[1]
        if (a1[0], a2[1], a1[1]) != (inputs, inputs, a2[0]):
            raise InputError(f"tensors do not fit together: a1 {tuple(a1)}, a2 {tuple(a2)} for {inputs} inputs")

    def complete(self, tensors: Tensors) -> dict[str, Tensor]:
        made = dict(tensors)
        if not made.keys() >= PLAIN:
            return made
        if not _fit(made) and _fit(exchanged := _exchanged(made)):
            made = exchanged
        if "bm" in made:
            import torch

            core, b2 = made.pop("bm"), made["b2"]
            if core.ndim != 4 or core.shape[1] != b2.shape[0]:
                raise InputError(f"tensors do not fit together: bm {tuple(core.shape)}")
            made["b2"] = torch.einsum("rskl,si->rikl", core.float(), b2.flatten(1).float()).to(b2.dtype)
        return made

    def rank_stabilised(self, tensors: Tensors, alpha: float) -> tuple[dict[str, Tensor], float] | None:
        return dict(tensors), alpha * self.rank(tensors) ** 0.5  # the strength is alpha / sqrt(rank)

    def stronger(self, tensors: Tensors, factor: float) -> dict[str, Tensor]:
        return {
            name: (each.detach().float() * factor).to(each.dtype) if name in ("a2", "b2") else each
            for name, each in tensors.items()
        }


def _fit(tensors: Tensors) -> bool:
    """Whether the inner sides of both products are one rank."""
    a1, a2, b1, b2 = (tensors[name] for name in ("a1", "a2", "b1", "b2"))
    return a1.shape[1] == a2.shape[0] == b1.shape[1] == b2.shape[0]


def _exchanged(tensors: Tensors) -> dict[str, Tensor]:
    other = {"a1": "a2", "a2": "a1", "b1": "b2", "b2": "b1"}
    return {other.get(name, name): tensor for name, tensor in tensors.items()}
