"""Settings of the cache of encoded pictures and captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sd_ext.training.settings.setting import Settings, setting


@dataclass(frozen=True)
class CacheSettings(Settings):
    """What is encoded once, and where it is kept."""

    cache: bool = setting(True, "encode pictures and captions once; latents are still drawn anew each step")
    cache_dir: str = setting("", "where; else inside the run's folder", "DIR", free=True)
    cache_dtype: str = setting("fp16", "what it stores", choices=("fp16", "fp32"))

    def folder(self, out: str) -> Path:
        """The folder of the cache of a run."""
        return Path(self.cache_dir or Path(out) / "cache")
