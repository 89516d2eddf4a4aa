"""The U-Net for pictures larger than it was trained on."""

from __future__ import annotations

from typing import Any, ClassVar

from .variant import VariantUNet2DConditionModel


class HighResUNet2DConditionModel(VariantUNet2DConditionModel):
    """Composes large pictures at the training size and attends in windows of it; at that size it is the plain U-Net.

    See `highres.HighRes` for the first and `tile_size="auto"` of `tokens.TokenReduction` for the second.
    """

    _defaults: ClassVar[dict[str, Any]] = {"highres_factor": "auto", "tile_size": "auto", "tile_shift": True}
