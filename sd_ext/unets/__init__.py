"""U-Nets that load existing checkpoints and have further features, switched on by options in the model's config.

Names are imported when they are first used, so that `set_attention` does not load the U-Net classes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .attention.processors import attention_report, set_attention
    from .caching import DeepCacheConfig
    from .classes import CachedUNet2DConditionModel, HighResUNet2DConditionModel, TokenReducedUNet2DConditionModel
    from .guidance_interval import GuidanceInterval
    from .guiders import guided_by
    from .inside.told import sampling
    from .publishing import publishable
    from .regions import regional
    from .variant import VariantUNet2DConditionModel

__all__ = [
    "CachedUNet2DConditionModel",
    "DeepCacheConfig",
    "GuidanceInterval",
    "HighResUNet2DConditionModel",
    "TokenReducedUNet2DConditionModel",
    "VariantUNet2DConditionModel",
    "attention_report",
    "guided_by",
    "publishable",
    "regional",
    "sampling",
    "set_attention",
]

_PLACES = {
    "CachedUNet2DConditionModel": "classes",
    "DeepCacheConfig": "caching",
    "GuidanceInterval": "guidance_interval",
    "HighResUNet2DConditionModel": "classes",
    "TokenReducedUNet2DConditionModel": "classes",
    "VariantUNet2DConditionModel": "variant",
    "attention_report": "attention.processors",
    "guided_by": "guiders",
    "publishable": "publishing",
    "regional": "regions",
    "sampling": "inside.told",
    "set_attention": "attention.processors",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
