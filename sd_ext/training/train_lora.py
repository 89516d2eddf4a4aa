"""Train a LoRA of Stable Diffusion 1.x, 2.x or SDXL; the base model stays as it is.

    accelerate launch training/train_lora.py CONFIG.toml        (or the name of a preset: embedded, sd15, sd21, sdxl)

Adapters (LoRA, Hu et al. 2021, arXiv 2106.09685, and kin) go into modules of the U-Net and, if wanted, of the text
encoders; new words are learned beside them. The adapters are in float32, the frozen base in the precision that passes
compute in. The result is the same LoRA in Diffusers' and in kohya's format, pictures, and a validation curve.
"""

from __future__ import annotations

import sys

from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.launch import launch as run
from sd_ext.training.settings.command import main

__all__ = ["run"]

if __name__ == "__main__":
    sys.exit(main(LoraConfig, "sd_ext.training.train_lora:run", __doc__))
