"""Train a LoRA of Stable Diffusion 1.x, 2.x or SDXL; the base model stays as it is.

    accelerate launch training/train_lora.py CONFIG.toml        (or the name of a preset: embedded, sd15, sd21, sdxl)

Adapters (LoRA, Hu et al. 2021, arXiv 2106.09685, and kin) go into modules of the U-Net and, if wanted, of the text
encoders; new words are learned beside them. The adapters are in float32, the frozen base in the precision that passes
compute in. The result is the same LoRA in Diffusers' and in kohya's format, pictures, and a validation curve.
"""

from __future__ import annotations

import sys
from pathlib import Path

from accelerate import PartialState

from sd_ext.training.lora.class_pictures import make_class_pictures, missing
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.estimate import check_fits
from sd_ext.training.lora.network import base_dtype
from sd_ext.training.lora.task import LoraTask
from sd_ext.training.model.trainable import find_trainable
from sd_ext.training.run.fit import fit
from sd_ext.training.run.folder import check_folder
from sd_ext.training.run.machine import check_machine, uses_cpu
from sd_ext.training.settings.command import main


def run(config: LoraConfig) -> Path:
    """Train a LoRA, or resume its training. Missing class pictures are drawn first.

    Returns:
        The folder of the LoRA.

    Raises:
        InputError: settings, data or model that cannot work, or too little memory.
        TrainingError, Interrupted: see `fit`.
    """
    check_machine(config)
    files = find_trainable(config.base.model, config.base.variant, config.base.revision)
    state = PartialState(cpu=uses_cpu(config.machine))
    if missing(config.prior):
        planned = LoraTask(config, files)  # raises on wrong settings or data before pictures are drawn
        check_folder(planned.config, planned.name)
        check_fits(planned.workload, state.device)
        side = config.pictures.resolution[0]
        make_class_pictures(config.prior, config.previews, files, state, base_dtype(config), side)
    task = LoraTask(config, files)
    task.parts["model"] = files.digest("unet", "scheduler")
    check_fits(task.workload, state.device)
    folder = fit(task, task.config)
    if config.result.push_to_hub and state.is_main_process:
        from sd_ext.hub import publish

        print(publish(folder, config.result.push_to_hub))
    return folder


if __name__ == "__main__":
    sys.exit(main(LoraConfig, "sd_ext.training.train_lora:run", __doc__))
