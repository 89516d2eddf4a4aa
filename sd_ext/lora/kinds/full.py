"""Whole tensors in place of factors: a difference (`diff`, kohya's and LyCORIS's), or the new value (`set_weight`).

They hold what no low-rank kind can: norms, whose weights are vectors, and biases.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .given_weight import GivenWeight
from .kind import Kind, Tensors

if TYPE_CHECKING:
    from torch import Size, Tensor


class DiffKind(Kind):
    """W' = W + diff, of any shape: a weight's, a norm's (n,), a bias's (n,)."""

    name = "diff"
    factors = (frozenset({"diff"}),)
    kohya = {"diff": "diff"}  # noqa: RUF012
    dotted = kohya
    elsewhere = {"bias": {"diff_b": "diff"}, "norm": {"w_norm": "diff"}, "norm bias": {"b_norm": "diff"}}  # noqa: RUF012
    has_alpha = False
    network_args = {"algo": "full"}  # noqa: RUF012

    def product(self, tensors: Tensors) -> Tensor:
        return tensors["diff"]

    def stronger(self, tensors: Tensors, factor: float) -> dict[str, Tensor]:
        diff = tensors["diff"]
        return {"diff": (diff.detach().float() * factor).to(diff.dtype)}


class SetKind(GivenWeight):
    """W' = value: what the weight becomes, whatever it was (ComfyUI)."""

    name = "set"
    factors = (frozenset({"value"}),)
    kohya = {"set_weight": "value"}  # noqa: RUF012
    dotted = kohya
    has_alpha = False

    def changed(self, tensors: Tensors, scale: float, weight: Tensor) -> Tensor:
        return tensors["value"]

    def shape(self, tensors: Tensors) -> Size | None:
        return tensors["value"].shape
