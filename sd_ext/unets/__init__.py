"""U-Nets that load existing checkpoints and do more, each feature switched by options in the model's config."""

from __future__ import annotations

from .attention.processors import attention_report, set_attention
from .classes import CachedUNet2DConditionModel, HighResUNet2DConditionModel, TokenReducedUNet2DConditionModel
from .guidance_interval import GuidanceInterval
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
