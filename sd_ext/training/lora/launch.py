"""Launches the training of a LoRA of any kind."""

from __future__ import annotations

from pathlib import Path

from sd_ext.training.lora.begin import checked_task
from sd_ext.training.lora.class_pictures import make_class_pictures, missing
from sd_ext.training.lora.config import LoraConfig
from sd_ext.training.lora.estimate import check_fits
from sd_ext.training.lora.network import base_dtype
from sd_ext.training.lora.task import task_of
from sd_ext.training.run.fit import fit
from sd_ext.training.run.folder import check_folder


def launch(config: LoraConfig) -> Path:
    """Train a LoRA, or resume its training. Missing class pictures are drawn first.

    Args:
        config: the settings; their class says what kind of LoRA.

    Returns:
        The folder of the LoRA.

    Raises:
        InputError: settings, data or model that cannot work, or too little memory.
        TrainingError, Interrupted: see `fit`.
    """
    state, task = checked_task(config)  # what is wrong is said before pictures are drawn
    files = task.files
    if missing(config.prior):
        check_folder(task.config, task.name)
        check_fits(task.workload, state.device)
        side = config.pictures.resolution[0]
        make_class_pictures(config.prior, config.previews, files, state, base_dtype(config), side)
        task = task_of(config, files)
    task.parts["model"] = files.digest("unet", "scheduler")
    check_fits(task.workload, state.device, task.known)
    folder = fit(task, task.config)
    if config.result.push_to_hub and state.is_main_process:
        from sd_ext.hub import publish

        print(publish(folder, config.result.push_to_hub))
    return folder
