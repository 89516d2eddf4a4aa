"""U-Net variants that have a name: `VariantUNet2DConditionModel` with other defaults."""

from __future__ import annotations

from typing import Any, ClassVar

from .variant import VariantUNet2DConditionModel


class CachedUNet2DConditionModel(VariantUNet2DConditionModel):
    """A U-Net that runs its deep part every third step (`cache_interval=3`) until told otherwise.

    Another name for `VariantUNet2DConditionModel` with this default; see `cache.DeepFeatureCache` for the options.
    """

    _defaults: ClassVar[dict[str, Any]] = {"cache_interval": 3}


class TokenReducedUNet2DConditionModel(VariantUNet2DConditionModel):
    """Merges half of the tokens around self-attention at the finest level that has it; see `tokens.TokenReduction`."""

    _defaults: ClassVar[dict[str, Any]] = {"token_merge_ratio": 0.5}


class HighResUNet2DConditionModel(VariantUNet2DConditionModel):
    """Composes large pictures at the training size and attends in windows of it; at that size it is the plain U-Net.

    See `highres.HighRes` for the first and `tile_size="auto"` of `tokens.TokenReduction` for the second.
    """

    _defaults: ClassVar[dict[str, Any]] = {"highres_factor": "auto", "tile_size": "auto", "tile_shift": True}
