"""Bytes: what operations hold, what a model takes, and what is free."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sd_ext.seams.torch import storage_number, watching


def gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def size_of(models: Iterable[nn.Module]) -> int:
    return sum(p.numel() * p.element_size() for model in models for p in model.parameters())


class PeakMemory:
    """Counts the bytes of storages that appear, and the most there are at once.

    Args:
        known: tensors that are there already.
    """

    def __init__(self, known: Iterable[Tensor]):
        self.alive = {storage_number(tensor.untyped_storage()) for tensor in known}
        self.now = self.peak = 0

    def see(self, tensor: Tensor) -> None:
        """Count a tensor's storage, unless it is counted, until nothing refers to it any more."""
        storage = tensor.untyped_storage()
        number = storage_number(storage)
        if number not in self.alive:
            self.alive.add(number)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, number, storage.nbytes())

    def _gone(self, number: int, size: int) -> None:
        self.alive.discard(number)
        self.now -= size


def peak_bytes(models: Iterable[nn.Module], call: Callable[[], Any]) -> int:
    """The most bytes that `call()` holds at once beside the models' weights."""
    memory = PeakMemory(p for model in models for p in model.parameters())
    with watching(memory.see):
        call()
    return memory.peak


def kept_bytes(call: Callable[[], Any]) -> int:
    """Bytes of the storages that autograd keeps for the backward pass of `call()`, weights among them."""
    kept: dict[int, torch.UntypedStorage] = {}  # held, so that no other gets its number

    def pack(tensor: Tensor) -> Tensor:
        kept[storage_number(tensor.untyped_storage())] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(storage.nbytes() for storage in kept.values())


def make_fake(model: nn.Module, frozen: torch.dtype) -> None:
    """Turn a model on the meta device into one of fake tensors (call it under `fake_tensors` and `torch.device`).

    Args:
        model: changed in place.
        frozen: number format of the weights that are not trained.
    """
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            dtype = frozen if p.is_floating_point() and not p.requires_grad else p.dtype
            setattr(module, name, nn.Parameter(torch.empty(p.shape, dtype=dtype), p.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype))


def free_memory(device: torch.device) -> int:
    """Bytes that each process of this machine can still take on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [known for known in (system_memory(), container_memory()) if known is not None]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(found) // processes if found else 2**62  # nothing is known: nothing is refused


def system_memory() -> int | None:
    """Free bytes of the machine, as Linux tells them."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def container_memory(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Free bytes within a container's limit (cgroup v2); None where there is no limit."""
    try:
        return int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None
