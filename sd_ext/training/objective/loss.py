"""The module that a diffusion run minimises: the weighted error of what the U-Net predicts."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sd_ext.training.model.text_encoders import TextTowers, unet_arguments
from sd_ext.training.objective.error import error


class DiffusionLoss(nn.Module):
    """The weighted error of a batch: see `forward`.

    Args:
        unet: predicts.
        kind: of error, as the setting `loss`.
        towers: text encoders, where they are trained; else conditions come encoded.
    """

    def __init__(self, unet: Any, kind: str = "l2", towers: TextTowers | None = None):
        super().__init__()
        self.unet, self.kind, self.towers = unet, kind, towers

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        wanted: Tensor,
        weight: Tensor,
        delta: Tensor,
        conditions: dict[str, Tensor],
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """`x`, `wanted` (b, c, h, w); `t`, `weight`, `delta` (b,); `mask` (b, 1, h, w) -> loss, a scalar.

        `conditions`: states (b, n, d) or tokens (b, towers, n), and for SDXL pooled (b, p) and time_ids (b, 6).
        """
        if self.towers is not None:
            conditions = {**conditions, **self.towers(conditions["tokens"])}
        prediction = self.unet(x, t, **unet_arguments(conditions)).sample
        return {"loss": (weight * error(self.kind, prediction, wanted, delta, mask)).mean()}
