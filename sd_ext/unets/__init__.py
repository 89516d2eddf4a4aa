"""U-Nets that load existing checkpoints and do more, each feature switched by options in the model's config."""

from __future__ import annotations

from .cached import CachedUNet2DConditionModel
from .large_pictures import HighResUNet2DConditionModel
from .token_reduced import TokenReducedUNet2DConditionModel
from .variant import VariantUNet2DConditionModel

__all__ = [
    "CachedUNet2DConditionModel",
    "HighResUNet2DConditionModel",
    "TokenReducedUNet2DConditionModel",
    "VariantUNet2DConditionModel",
]
