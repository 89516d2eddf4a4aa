"""The U-Net that reuses deep features, by name."""

from __future__ import annotations

from typing import Any, ClassVar

from .variant import VariantUNet2DConditionModel


class CachedUNet2DConditionModel(VariantUNet2DConditionModel):
    """A U-Net that runs its deep part every third step (`cache_interval=3`) until told otherwise.

    Another name for `VariantUNet2DConditionModel` with this default; see `cache.DeepFeatureCache` for the options.
    """

    _defaults: ClassVar[dict[str, Any]] = {"cache_interval": 3}
