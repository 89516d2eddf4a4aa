"""LoKr: delta = alpha / rank * kron(w1, w2) (LyCORIS, arXiv:2309.14859, section 3.1).

`w1` is stored whole or as `w1_a` @ `w1_b`; `w2` whole, as `w2_a` @ `w2_b`, or for a convolution as these two with a
core `t2` between them. If both are whole there is no rank, and the scale is 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .kind import Kind, Tensors
from .tucker import factor

if TYPE_CHECKING:
    from torch import Tensor

SPELLINGS = {f"lokr_{name}": name for name in ("w1", "w1_a", "w1_b", "t1", "w2", "w2_a", "w2_b", "t2")}


class LokrKind(Kind):
    """LoKr, as LyCORIS and peft define it."""

    name = "lokr"
    factors = tuple(
        frozenset({*first, *second})
        for first in (("w1",), ("w1_a", "w1_b"), ("w1_a", "w1_b", "t1"))
        for second in (("w2",), ("w2_a", "w2_b"), ("w2_a", "w2_b", "t2"))
    )
    kohya = SPELLINGS
    dotted = SPELLINGS
    peft_type = "LOKR"
    options = frozenset({"lokr_factor"})

    def product(self, tensors: Tensors) -> Tensor:
        import torch

        w1, w2 = factor(tensors, "w1", "t1"), factor(tensors, "w2", "t2")
        return torch.kron(w1.reshape(*w1.shape, *[1] * (w2.ndim - 2)).contiguous(), w2.contiguous())

    def rank(self, tensors: Tensors) -> int:
        inner = tensors.get("w2_b", tensors.get("w1_b"))
        return 0 if inner is None else inner.shape[0]

    def stronger(self, tensors: Tensors, factor: float) -> dict[str, Tensor]:
        name = "w1" if "w1" in tensors else "w1_a"
        return {**tensors, name: (tensors[name].detach().float() * factor).to(tensors[name].dtype)}

    def rank_stabilised(self, tensors: Tensors, alpha: float) -> tuple[dict[str, Tensor], float] | None:
        # Two whole factors are trained at the strength sqrt(dim), and the file's alpha is dim sqrt(dim).
        return (self.stronger(tensors, alpha ** (1 / 3)), 1.0) if not self.rank(tensors) and alpha > 0 else None

    def from_training(self, tensors: dict[str, Tensor], alpha: float, rank: int) -> tuple[dict[str, Tensor], float]:
        if self.rank(tensors):
            return super().from_training(tensors, alpha, rank)
        return {**tensors, "w1": tensors["w1"] * (alpha / rank)}, 1.0  # readers apply no scale to two whole factors

    def peft_config(self, shared: dict[str, Any], alpha: float, init: str | bool, settings: Any) -> Any:
        from peft import LoKrConfig

        known: dict[str, Any] = {"alpha": alpha, "module_dropout": settings.dropout}
        return LoKrConfig(**shared, **known, decompose_factor=settings.lokr_factor)
