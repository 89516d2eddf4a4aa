"""Train a slider: a LoRA of Stable Diffusion 1.x, 2.x or SDXL whose strength goes both ways, say from young to old.

    accelerate launch training/train_slider.py CONFIG.toml        (or a preset: embedded, sd15, sd21, sdxl)

Its ends are two texts, or the pictures of pairs (Concept Sliders, Gandikota et al. 2023, arXiv 2311.12092). Use it at
strengths such as -2 to 2. Data, caches, checkpoints and files are those of `train_lora`.
"""

from __future__ import annotations

import sys

from sd_ext.training.lora.launch import launch as run
from sd_ext.training.settings.command import main
from sd_ext.training.slider.config import SliderConfig

__all__ = ["run"]

if __name__ == "__main__":
    sys.exit(main(SliderConfig, "sd_ext.training.train_slider:run", __doc__))
