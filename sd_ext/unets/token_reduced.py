"""The U-Net with fewer tokens in self-attention."""

from __future__ import annotations

from typing import Any, ClassVar

from .variant import VariantUNet2DConditionModel


class TokenReducedUNet2DConditionModel(VariantUNet2DConditionModel):
    """Merges half of the tokens around self-attention at the finest level that has it; see `tokens.TokenReduction`."""

    _defaults: ClassVar[dict[str, Any]] = {"token_merge_ratio": 0.5}
