"""Checks, before any model is loaded, that this machine supports a run: device, number format, optional packages."""

from __future__ import annotations

import importlib.util

import torch
from accelerate.utils import is_wandb_available

from sd_ext.errors import InputError
from sd_ext.training.optimizer.make import find_class
from sd_ext.training.run.config import RunConfig
from sd_ext.training.run.settings import MachineSettings
from sd_ext.training.settings.config import every_setting


def uses_cpu(settings: MachineSettings) -> bool:
    """Whether a run uses the CPU: because the settings say so, or because PyTorch finds no CUDA device."""
    return settings.device == "cpu" or not torch.cuda.is_available()


def check_machine(config: RunConfig) -> None:
    """Refuse settings that this machine does not support.

    Raises:
        InputError: the device does not exist or lacks the number format, or a package is not installed.
    """
    machine = config.machine
    if machine.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but PyTorch sees no CUDA device; use --device cpu")
    if uses_cpu(machine) and machine.mixed_precision == "fp16":
        raise InputError("fp16 needs a GPU; on a CPU use --mixed-precision bf16 or no")
    if config.folder.tracker == "wandb" and not is_wandb_available():
        raise InputError("tracker is wandb, which is not installed: pip install wandb")
    values = config.values()
    for name, each in every_setting(type(config)).items():
        package = each.meta["packages"].get(values[name])
        if package and importlib.util.find_spec(package) is None:
            raise InputError(f"{name} is {values[name]}, which needs {package}: pip install {package}")
    find_class(config.optimizer.optimizer)
