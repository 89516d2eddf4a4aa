"""The strength of a LoRA in training, by sample, so that one pass sees both directions of a slider."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sd_ext.seams.peft import on_added


class Strengths:
    """Multiplies what the LoRAs of a model add, each sample by its own number.

    The numbers stay as they are until others are set, so that passes that are computed again for their gradients
    (gradient checkpointing) have the same.

    Args:
        model: a model with LoRAs whose layers have samples along the first dimension.

    Attributes:
        now: the strength of each sample (b,), or (1,) for all; None for 1.
    """

    def __init__(self, model: Any):
        self.now: Tensor | None = None
        on_added(model, self._multiply)

    def _multiply(self, added: Tensor) -> Tensor:
        if self.now is None:
            return added
        return added * self.now.to(added).reshape(-1, *[1] * (added.ndim - 1))

    @contextlib.contextmanager
    def at(self, strength: float) -> Iterator[None]:
        """A context in which all samples have one strength."""
        before, self.now = self.now, torch.tensor([strength])
        try:
            yield
        finally:
            self.now = before
