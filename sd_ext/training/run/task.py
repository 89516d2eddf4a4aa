"""What a training script brings to `sd_ext.training.run.fit.fit`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from sd_ext.training.data.order import Pass


class Task:
    """One kind of training: its samples, the module that computes the loss, validation, previews, and the result.

    Attributes:
        name: shown, and recorded with the run.
        model: trained where its parameters require gradients; called with a batch, returns means over the batch, of
            which "loss" is minimised. There from `begin` on.
        sizes: of the samples: those of one size can share a pass.
        ratios: beginnings or parts of parameter names -> what their learning rate is multiplied by.
        stops: parts of parameter names -> the step from which on they stay as they are.
        parts: what is trained on beside the settings, by name: a resumed run must have the same.
    """

    name: str
    model: nn.Module
    sizes: Sequence[Hashable]
    ratios: dict[str, float] = {}  # noqa: RUF012  # never changed in place
    stops: dict[str, int] = {}  # noqa: RUF012
    parts: dict[str, str] = {}  # noqa: RUF012

    def begin(self, accelerator: Accelerator) -> None:
        """Load, and encode what is kept encoded; called once, by every process."""

    def arrange(self) -> None:
        """Bring the model's weights into the order in memory that is fastest; called once, after `begin`."""
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def read(self, each: Pass) -> Any:
        """What a pass needs from the disk; called ahead of time, in threads."""
        return None

    def batch(self, each: Pass, read: Any, device: torch.device) -> tuple:
        """The arguments of `model` for a pass."""
        raise AssertionError("every task makes its own batches")

    def names(self, each: Pass) -> str:
        """The samples of a pass, for messages."""
        return ", ".join(map(str, each.samples))

    def after(self, step: int) -> None:
        """Called before each step, and once a checkpoint is loaded, with the steps done."""

    def validate(self) -> dict[str, float]:
        """Measures on what is not trained on, the same draws each time."""
        return {}

    def preview(self) -> Image.Image | None:
        """A contact sheet by the model as it is."""
        return None

    def export(self, new: Path, history: list[dict[str, float]]) -> None:
        """Save the result into the empty folder `new`; `history` is what was logged."""
        raise AssertionError("every task saves its own result")
