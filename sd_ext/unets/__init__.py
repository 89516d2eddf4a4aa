"""U-Nets that load existing checkpoints and do more, each feature switched by options in the model's config."""

from __future__ import annotations

from .attention import attention_report, set_attention
from .cached import CachedUNet2DConditionModel
from .guidance_interval import GuidanceInterval
from .large_pictures import HighResUNet2DConditionModel
from .token_reduced import TokenReducedUNet2DConditionModel
from .variant import VariantUNet2DConditionModel

__all__ = [
    "CachedUNet2DConditionModel",
    "GuidanceInterval",
    "HighResUNet2DConditionModel",
    "TokenReducedUNet2DConditionModel",
    "VariantUNet2DConditionModel",
    "attention_report",
    "set_attention",
]
