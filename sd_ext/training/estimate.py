"""How much memory a run will take, found without loading a weight.

The U-Net (and trained text encoders) are built on the meta device, where tensors have shapes and no numbers; one
forward pass counts what autograd keeps for the backward pass. To that come weights, gradients, optimizer and average.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sd_ext.errors import InputError
from sd_ext.training.adapters import trained_parameters
from sd_ext.training.conditioning import unet_arguments

if TYPE_CHECKING:
    from sd_ext.training.train_lora import LoraTask

# Bytes of optimizer state for each trained number.
STATE = {"adamw": 8, "schedulefree-adamw": 8, "adamw8bit": 2, "adafactor": 1, "lion": 4, "sgd": 0, "prodigy": 16}


@dataclass(frozen=True)
class Estimate:
    """Bytes.

    Args:
        weights: of the frozen and trained models.
        training: gradients, optimizer state and averages.
        activations: what one pass of the largest size keeps.
        trained: numbers that are trained.
    """

    weights: int
    training: int
    activations: int
    trained: int

    @property
    def total(self) -> int:
        return self.weights + self.training + self.activations

    def __str__(self) -> str:
        parts = {"weights": self.weights, "training": self.training, "activations": self.activations}
        return f"{gb(self.total)} ({', '.join(f'{name} {gb(size)}' for name, size in parts.items())})"


def gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"


def size_of(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())


def kept_bytes(call: Any) -> int:
    """Bytes of the tensors autograd keeps during `call()`, each storage once, parameters apart."""
    seen: dict[int, Tensor] = {}
    kept = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal kept
        base = tensor if tensor._base is None else tensor._base
        if id(base) not in seen and not isinstance(tensor, nn.Parameter) and tensor.requires_grad | (tensor.ndim > 1):
            seen[id(base)] = base  # kept alive, so that no other tensor gets its id
            kept += base.numel() * base.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return kept


def estimate(task: LoraTask) -> Estimate:
    """What a run of a task takes on each process, beside Python and the libraries (about 1 GB)."""
    unet, towers = task.build_on_meta()
    models = [unet, *(towers.encoders.values() if towers else [])]
    weights = sum(size_of(model) for model in models)
    if task.config.base_precision == "int8":
        weights -= sum(m.weight.numel() * (m.weight.element_size() - 1) for m in unet.modules() if _frozen_linear(m))
    trained = sum(trained_parameters(model) for model in models)
    state = STATE.get(task.config.optimizer, 8)
    training = trained * (4 + state + (4 if task.config.ema else 0))
    return Estimate(weights, training, activations(task, unet, towers), trained)


def _frozen_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and not module.weight.requires_grad


def activations(task: LoraTask, unet: Any, towers: Any) -> int:
    """What one pass of the largest size keeps for its backward pass."""
    config, files = task.config, task.files
    height, width = max(task.sizes, key=lambda size: size[0] * size[1])  # type: ignore[index]
    batch = min(config.batch_size, len(task.sizes))
    dtype = next(p.dtype for p in unet.parameters() if not p.requires_grad)
    unet.train()

    def meta(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    length = files.config("text_encoder").get("max_position_embeddings", 77)
    conditions = {"states": meta(batch, length, unet.config.cross_attention_dim)}
    if files.family == "sdxl":
        conditions |= {
            "pooled": meta(batch, files.config("text_encoder_2")["projection_dim"]),
            "time_ids": meta(batch, 6),
        }
    x = meta(batch, task.channels, height // task.scale, width // task.scale)
    t = torch.zeros(batch, dtype=torch.long, device="meta")

    def call() -> None:
        known = dict(conditions)
        if towers is not None:
            tokens = torch.zeros(batch, len(towers.encoders), length, dtype=torch.long, device="meta")
            known |= towers(tokens)
        unet(x, t, **unet_arguments(known))

    return kept_bytes(call)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        with open("/proc/meminfo") as file:
            found = dict(line.split(":") for line in file)
        return int(found["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):  # not Linux: nothing is known, nothing is refused
        return 2**62


def check_memory(needed: Estimate, free: int, config: Any) -> None:
    """Refuse a run that cannot fit.

    Raises:
        InputError: says how much is needed, how much there is, and what to change.
    """
    if not config.memory_check or needed.total <= free:
        return
    advice = []
    if not config.gradient_checkpointing:
        advice.append("gradient_checkpointing = true")
    if config.batch_size > 1:
        advice.append("a smaller batch_size (with accumulation for the same step)")
    if config.mixed_precision == "no":
        advice.append("mixed_precision = bf16")
    advice += [f"a resolution below {config.resolution[-1]}", "base_precision = int8"]
    raise InputError(
        f"the run needs about {needed}, {gb(free)} are free; set {', or '.join(advice)}; "
        "or memory_check = false if you know better"
    )
