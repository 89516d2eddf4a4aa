"""What a run needs of this machine, checked before anything loads: a device, number formats, optional packages."""

from __future__ import annotations

import importlib.util

import torch
from accelerate.utils import is_wandb_available

from sd_ext.errors import InputError
from sd_ext.training.optimizer.make import find_class
from sd_ext.training.settings import RunConfig

PACKAGES = {  # setting -> value -> the package it takes
    "base_precision": {"int8": "torchao"},
    "attention_backend": {"xformers": "xformers"},
}


def uses_cpu(config: RunConfig) -> bool:
    return config.device == "cpu" or not torch.cuda.is_available()


def check_machine(config: RunConfig) -> None:
    """Refuse settings that this machine cannot follow.

    Raises:
        InputError: no such device, a number format it does not have, or a package that is not installed.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but PyTorch sees no CUDA device; use --device cpu")
    if uses_cpu(config) and config.mixed_precision == "fp16":
        raise InputError("fp16 needs a GPU; on a CPU use --mixed-precision bf16 or no")
    if config.tracker == "wandb" and not is_wandb_available():
        raise InputError("tracker is wandb, which is not installed: pip install wandb")
    for name, values in PACKAGES.items():
        package = values.get(getattr(config, name, ""))
        if package and importlib.util.find_spec(package) is None:
            raise InputError(f"{name} is {getattr(config, name)}, which needs {package}: pip install {package}")
    find_class(config.optimizer)
