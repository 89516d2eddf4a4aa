"""The module that a diffusion run minimises: the weighted error of the U-Net's prediction."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sd_ext.training.model.text_encoders import TextTowers, unet_arguments
from sd_ext.training.objective.error import error


class DiffusionLoss(nn.Module):
    """The weighted error of a batch: see `forward`.

    Args:
        unet: the U-Net.
        kind: kind of error, one of `ERRORS`.
        towers: the text encoders, if they are trained; None if `forward` gets text states instead of tokens.
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
        """The loss of a batch.

        Args:
            x: noisy latents (b, c, h, w).
            t: timesteps (b,).
            wanted: prediction targets (b, c, h, w).
            weight: factor of each sample's error (b,).
            delta: see `error` (b,).
            conditions: "states" (b, n, d), or "tokens" (b, towers, n) if text encoders are trained; for SDXL also
                "pooled" (b, p), unless text encoders are trained, and "time_ids" (b, 6).
            mask: see `error` (b, 1, h, w).

        Returns:
            "loss": a scalar, the mean over the batch.
        """
        if self.towers is not None:
            conditions = {**conditions, **self.towers(conditions["tokens"])}
        prediction = self.unet(x, t, **unet_arguments(conditions)).sample
        return {"loss": (weight * error(self.kind, prediction, wanted, delta, mask)).mean()}
