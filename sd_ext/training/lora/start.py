"""The starting adapters of initialisations that change the base model.

PiSSA (Meng et al. 2024, arXiv 2404.02948) and OLoRA (Büyükakyüz 2024, arXiv 2406.01775) start the adapters at a part of
the base's weights, and subtract that part from the base. A LoRA of the original base is then the difference between
the trained adapters and the starting adapters, so the starting adapters are saved with the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sd_ext import whole
from sd_ext.checked import load_checked, save_checked
from sd_ext.errors import DamagedError
from sd_ext.lora import Adapter, Lora, ModuleName, from_peft, merge
from sd_ext.seams.transformers import find_module
from sd_ext.training.run.checkpoint import restore


def keep_start(models: Mapping[str, nn.Module], path: Path, accelerator: Accelerator) -> Lora:
    """Load the starting adapters from a file; the first run writes it.

    On another machine, the initialisation may compute slightly different singular vectors. If so, the models' adapters
    are replaced by those of the file, in place, and the difference is added to the base's weights.

    Args:
        models: the models with adapters, by part name, with their adapters just initialised.
        path: the file.
        accelerator: the processes of the run; the first one writes the file.

    Returns:
        The starting adapters, in main memory.

    Raises:
        DamagedError: the file is damaged.
        WriteError: it cannot be written.
    """
    if accelerator.is_main_process and not path.exists():
        with whole.file(path) as new:
            save_checked(adapters_of(models), new, path.name)
    accelerator.wait_for_everyone()
    try:
        then, now = load_checked(path, path.name), adapters_of(models)
    except DamagedError as error:
        raise DamagedError(f"{error}; without it the run cannot go on: choose another --out") from error
    drawn = {module: adapter.product() for module, adapter in from_peft(dict(models)).adapters.items()}
    with torch.no_grad():
        restore(path, then, dict(now))
        start = from_peft(dict(models))
        for module, adapter in start.adapters.items():
            difference = drawn[module] - adapter.product()
            if difference.any():
                weight = base_weight(models, module)
                weight.copy_(weight.float() + difference.reshape(weight.shape))
    return on_cpu(start)


def start_of(models: Mapping[str, nn.Module], path: Path) -> Lora:
    """The starting adapters from a file, put into models without weights, in place.

    Args:
        models: the models with adapters, by part name, on PyTorch's meta device.
        path: the file that `keep_start` wrote.

    Raises:
        DamagedError: the file is damaged.
    """
    tensors = load_checked(path, path.name)
    for part, model in models.items():
        mine = {name.removeprefix(f"{part}."): t for name, t in tensors.items() if name.startswith(f"{part}.")}
        model.load_state_dict(mine, strict=False, assign=True)
    return on_cpu(from_peft(dict(models)))


def adapters_of(models: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """The trained matrices of all adapters: "part.parameter name" -> parameter."""
    return {
        f"{part}.{name}": p
        for part, model in models.items()
        for name, p in model.named_parameters()
        if p.requires_grad and ".lora_" in name
    }


def base_weight(models: Mapping[str, nn.Module], module: ModuleName) -> Tensor:
    """The frozen weight of the layer that an adapter belongs to."""
    model: Any = models[module.part]
    return find_module(dict(model.named_modules()), module.path).get_base_layer().weight


def on_cpu(lora: Lora) -> Lora:
    """A copy of a LoRA in main memory."""
    copies = {
        module: Adapter(a.kind, {name: t.to("cpu", copy=True) for name, t in a.tensors.items()}, a.alpha)
        for module, a in lora.adapters.items()
    }
    return replace(lora, adapters=copies)


def without_start(lora: Lora, start: Lora) -> Lora:
    """The LoRA for the original base: `lora` minus `start`, which has twice the rank."""
    return merge([(on_cpu(lora), 1.0), (start, -1.0)])
