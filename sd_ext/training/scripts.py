"""The scripts whose runs can be forked and exported."""

from __future__ import annotations

from sd_ext.training.configs import AutoencoderConfig, TextEncoderConfig, TextToImageConfig
from sd_ext.training.few_step.config import FewStepConfig
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.settings.config import Config
from sd_ext.training.slider.config import SliderConfig

SCRIPTS: dict[str, tuple[str, type[Config]]] = {
    "lora": ("lora", LoraConfig),
    "few-step": ("few_step", FewStepConfig),
    "slider": ("slider", SliderConfig),
    "text to image": ("text_to_image", TextToImageConfig),
    "autoencoder": ("autoencoder", AutoencoderConfig),
    "text encoder": ("text_encoder", TextEncoderConfig),
}
"""Name of the task in run.json -> (its script is `train_...`, its settings)."""
