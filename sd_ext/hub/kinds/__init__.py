"""What can be published beside finished runs, each a function that returns its `Content`.

lora_file    any LoRA file           unet       a U-Net's config, with or without weights
sampler      a sampler as tables     pipeline   a pipeline's folder
card         what their cards share
"""

from __future__ import annotations

from .lora_file import lora_file
from .pipeline import pipeline
from .sampler import sampler
from .unet import unet

__all__ = ["lora_file", "pipeline", "sampler", "unet"]
