"""Settings of `sd-ext train look`: those of LoRA training, and what is shown of the data."""

from __future__ import annotations

from dataclasses import dataclass

from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.settings.setting import AT_LEAST_1, Settings, setting


@dataclass(frozen=True)
class LookSettings(Settings):
    """What is shown, and where it goes."""

    page: str = setting("", "write the page there; else look.html, or none with --json", "FILE.html", free=True)
    json: bool = setting(False, "print everything about every picture as one JSON object", free=True)
    shown: int = setting(300, "pictures on the page; all are counted", "N", free=True, within=AT_LEAST_1)
    first: int = setting(1, "number of the first picture on the page", "N", free=True, within=AT_LEAST_1)
    spread: bool = setting(
        False, "measure how unsure the model's autoencoder is of the pictures on the page (encodes them)", free=True
    )


@dataclass(frozen=True)
class LookConfig(LoraConfig):
    """Settings of `sd-ext train look`."""

    plan = ""

    look: LookSettings = LookSettings()
