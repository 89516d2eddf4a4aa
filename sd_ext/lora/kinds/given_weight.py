"""Base of the kinds whose change depends on the weight: they say what W becomes, not what is added to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...errors import InputError
from .kind import NEEDED, Kind, Tensors, one

if TYPE_CHECKING:
    from torch import Size, Tensor


class GivenWeight(Kind):
    """A kind that defines `changed`, and `outputs` or `shape`."""

    def changed(self, tensors: Tensors, scale: float, weight: Tensor) -> Tensor:
        """The new weight.

        Args:
            tensors: float32, on the weight's device.
            scale: see `Kind.scale`.
            weight: W, float32.
        """
        raise NotImplementedError

    def outputs(self, tensors: Tensors) -> int | None:
        """How many outputs the weight must have; None if that is not fixed."""
        return None

    def delta(self, tensors: Tensors, scale: float, weight: Tensor | None) -> Tensor:
        if weight is None:
            raise InputError(f"what {one(self.name)} adds {NEEDED}")
        weight = weight.detach().float()
        ready = {name: tensor.detach().to(weight) for name, tensor in tensors.items()}
        return self.changed(ready, scale, weight).reshape(weight.shape) - weight

    def decisive(self, tensors: Tensors, scale: float) -> list[Tensor]:
        import torch

        return [*(tensors[name].detach().float() for name in sorted(tensors)), torch.tensor([scale])]

    def shape(self, tensors: Tensors) -> Size | None:
        return None

    def check_weight(self, tensors: Tensors, shape: Size) -> None:
        if (expected := self.outputs(tensors)) is not None and expected != shape[0]:
            raise InputError(f"made for a weight of {expected} outputs, and the base has {tuple(shape)}")
        super().check_weight(tensors, shape)
