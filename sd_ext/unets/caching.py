"""Diffusers' calls for caches, `enable_cache`, `disable_cache` and `is_cache_enabled`, on U-Nets."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import InputError
from .features.cache import DeepFeatureCache

log = logging.getLogger("sd_ext.unets")


@dataclass(frozen=True)
class DeepCacheConfig:
    """What is reused from step to step, for `unet.enable_cache(sd_ext.DeepCacheConfig(interval=3))`.

    Args:
        interval: the whole network runs every so many steps.
        depth, layer: where it is cut; None is the usual cut of the model's family.
        schedule: "uniform", "front-loaded", a list of the steps that run whole, "threshold", or "sampler".
        threshold: for "threshold": the relative change of the features that asks for a whole step.

    See `sd_ext.unets.features.cache.DeepFeatureCache`, whose options `cache_interval`, `cache_depth`, ... these are.
    """

    interval: int = 3
    depth: int | None = None
    layer: int | None = None
    schedule: str | list[int] = "uniform"
    threshold: float = 0.0


class CacheSwitch:
    """Mixin for a U-Net with features: its cache by the names of Diffusers' `CacheMixin`."""

    @property
    def is_cache_enabled(self) -> bool:
        """Whether features are reused from step to step."""
        return any(isinstance(feature, DeepFeatureCache) for feature in self.active_features)  # type: ignore[attr-defined]

    def enable_cache(self, config: DeepCacheConfig) -> None:
        """Reuse features from step to step; an option of the model, which is saved with it.

        Raises:
            InputError: a cache is on already, a config of another kind, or one that this model cannot have.
        """
        if not isinstance(config, DeepCacheConfig):
            raise InputError(
                f"enable_cache: {type(config).__name__} is for other models; give a U-Net a sd_ext.DeepCacheConfig"
            )
        if self.is_cache_enabled:
            raise InputError("enable_cache: a cache is on already; call disable_cache() first")
        options = {f"cache_{name}": value for name, value in asdict(config).items()}
        if DeepFeatureCache.is_neutral(options):
            raise InputError(f"enable_cache: {config} reuses nothing; set an interval of 2 or more, or a schedule")
        self.set_options(**options)  # type: ignore[attr-defined]

    def disable_cache(self) -> None:
        """Reuse nothing any more."""
        if not self.is_cache_enabled:
            log.warning("disable_cache: no cache is on")
        neutral: dict[str, Any] = {name: option.neutral for name, option in DeepFeatureCache.options.items()}
        self.set_options(**neutral)  # type: ignore[attr-defined]
