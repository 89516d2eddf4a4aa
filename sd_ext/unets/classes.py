"""U-Net classes with other default options than `VariantUNet2DConditionModel`."""

from __future__ import annotations

from typing import Any, ClassVar

from .variant import VariantUNet2DConditionModel


class CachedUNet2DConditionModel(VariantUNet2DConditionModel):
    """A U-Net that computes its deep part only at every third step (`cache_interval=3`).

    It reuses the deep part's last output in between, and differs from `VariantUNet2DConditionModel` only in this
    default; see `cache.DeepFeatureCache` for the options.
    """

    _defaults: ClassVar[dict[str, Any]] = {"cache_interval": 3}


class TokenReducedUNet2DConditionModel(VariantUNet2DConditionModel):
    """A U-Net that merges half of the tokens around self-attention, at the finest level that has attention.

    See `tokens.TokenReduction` for the options.
    """

    _defaults: ClassVar[dict[str, Any]] = {"token_merge_ratio": 0.5}


class HighResUNet2DConditionModel(VariantUNet2DConditionModel):
    """A U-Net for pictures larger than the training size; at that size it equals the plain U-Net.

    It composes pictures on a grid of the training size (see `highres.HighRes`), and its self-attention works in windows
    of that size (`tile_size="auto"` of `tokens.TokenReduction`).
    """

    _defaults: ClassVar[dict[str, Any]] = {"highres_factor": "auto", "tile_size": "auto", "tile_shift": True}
