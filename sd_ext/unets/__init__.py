"""U-Nets that load existing checkpoints and do more, each feature switched by options in the model's config."""

from __future__ import annotations

from .variant import VariantUNet2DConditionModel

__all__ = ["VariantUNet2DConditionModel"]
