"""Train a few-step LoRA of Stable Diffusion 1.x, 2.x or SDXL: consistency distillation of the model by itself.

    accelerate launch training/train_few_step.py CONFIG.toml        (or a preset: embedded, sd15, sd21, sdxl)

With the LoRA four network calls without guidance do what some twenty with guidance do without it (LCM-LoRA, Luo et al.
2023, arXiv 2311.05556). The base model as it is teaches: along its own path from noise to a picture, the LoRA learns to
jump to the path's end. Draw with the samplers `lcm` or `tcd`, guidance 1. Data, caches, checkpoints and files are those
of `train_lora`.
"""

from __future__ import annotations

import sys

from sd_ext.training.few_step.config import FewStepConfig
from sd_ext.training.lora.launch import launch as run
from sd_ext.training.settings.command import main

__all__ = ["run"]

if __name__ == "__main__":
    sys.exit(main(FewStepConfig, "sd_ext.training.train_few_step:run", __doc__))
