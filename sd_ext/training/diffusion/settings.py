"""Settings of previews: the pictures that a model draws during its training."""

from __future__ import annotations

from dataclasses import dataclass

from sd_ext.training.settings.setting import AT_LEAST_1, Settings, setting


@dataclass(frozen=True)
class PreviewSettings(Settings):
    """What is drawn, and how."""

    prompts: tuple[str, ...] = setting((), "captions of the previews; else the data's first", "TEXT,...", free=True)
    negative_prompt: str = setting("", "what the previews should not show", "TEXT", free=True)
    preview_guidance: float = setting(3.0, "guidance scale of the preview pictures", free=True)
    preview_steps: int = setting(20, "network calls of a preview", "N", free=True, within=AT_LEAST_1)
    preview_seed: int = setting(0, "seed of the first preview; the next have the next", free=True)
