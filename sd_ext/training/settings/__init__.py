"""Every setting of the training scripts: one dataclass field = one flag = one line of help."""

from sd_ext.training.settings.base import RunConfig, result_settings, setting
from sd_ext.training.settings.diffusion import DiffusionConfig, TextToImageConfig
from sd_ext.training.settings.lora import LoraConfig
from sd_ext.training.settings.scratch import AutoencoderConfig, TextEncoderConfig

__all__ = [
    "AutoencoderConfig",
    "DiffusionConfig",
    "LoraConfig",
    "RunConfig",
    "TextEncoderConfig",
    "TextToImageConfig",
    "result_settings",
    "setting",
]
