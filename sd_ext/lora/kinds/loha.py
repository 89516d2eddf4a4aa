"""LoHa: delta = alpha / rank * (w1_a @ w1_b) * (w2_a @ w2_b), elementwise (FedPara, arXiv:2108.06098, equation 2).

`w1_a` and `w2_a` are (out, rank), `w1_b` and `w2_b` (rank, in). For a convolution, `in` stands for in * k * k; or there
are cores `t1` and `t2` (rank, rank, k, k), and `w1_a` and `w2_a` are (rank, out).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .kind import Kind, Tensors
from .tucker import factor

if TYPE_CHECKING:
    from torch import Tensor

PAIRS = frozenset({"w1_a", "w1_b", "w2_a", "w2_b"})
SPELLINGS = {f"hada_{name}": name for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")}


class LohaKind(Kind):
    """LoHa, as LyCORIS and peft define it."""

    name = "loha"
    factors = (PAIRS, PAIRS | {"t1", "t2"})
    kohya = SPELLINGS
    dotted = SPELLINGS
    peft_type = "LOHA"

    def product(self, tensors: Tensors) -> Tensor:
        return factor(tensors, "w1", "t1") * factor(tensors, "w2", "t2")

    def rank(self, tensors: Tensors) -> int:
        return tensors["w1_b"].shape[0]

    def stronger(self, tensors: Tensors, factor: float) -> dict[str, Tensor]:
        return {**tensors, "w1_a": (tensors["w1_a"].detach().float() * factor).to(tensors["w1_a"].dtype)}

    def peft_config(self, shared: dict[str, Any], alpha: float, init: str | bool, settings: Any) -> Any:
        from peft import LoHaConfig

        known: dict[str, Any] = {"alpha": alpha, "module_dropout": settings.dropout}
        return LoHaConfig(**shared, **known)
