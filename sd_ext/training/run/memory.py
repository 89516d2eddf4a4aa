"""Memory in bytes: the peak of a computation, the size of a model, the free memory of a device."""

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
    """A number of bytes as text, in GB or MB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def size_of(models: Iterable[nn.Module]) -> int:
    """The bytes of all parameters of models."""
    return sum(p.numel() * p.element_size() for model in models for p in model.parameters())


class PeakMemory:
    """Counts the bytes of tensor storages that are alive, and their peak.

    Args:
        known: tensors that exist already and are not counted.

    Attributes:
        now: bytes alive at present.
        peak: most bytes that were alive at once.
    """

    def __init__(self, known: Iterable[Tensor]):
        self.alive = {storage_number(tensor.untyped_storage()) for tensor in known}
        self.now = self.peak = 0

    def see(self, tensor: Tensor) -> None:
        """Count a tensor's storage, unless it is counted already; it is subtracted again when it is freed."""
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
    """The peak memory of `call()` in bytes, not counting the models' weights."""
    memory = PeakMemory(p for model in models for p in model.parameters())
    with watching(memory.see):
        call()
    return memory.peak


def kept_bytes(call: Callable[[], Any]) -> int:
    """The bytes of all tensors, weights included, that autograd saves in `call()` for its backward pass."""
    kept: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no later storage gets the same number

    def pack(tensor: Tensor) -> Tensor:
        kept[storage_number(tensor.untyped_storage())] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        call()
    return sum(storage.nbytes() for storage in kept.values())


def make_fake(model: nn.Module, frozen: torch.dtype) -> None:
    """Replace the meta tensors of a model by fake tensors, in place. Call it within `fake_tensors` and `torch.device`.

    Args:
        model: a model on the meta device.
        frozen: number format of the weights that are not trained.
    """
    for module in model.modules():
        for name, p in list(module.named_parameters(recurse=False, remove_duplicate=False)):
            dtype = frozen if p.is_floating_point() and not p.requires_grad else p.dtype
            setattr(module, name, nn.Parameter(torch.empty(p.shape, dtype=dtype), p.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False, remove_duplicate=False)):
            setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype))


def free_memory(device: torch.device) -> int:
    """The bytes that each process on this machine can still allocate on a device.

    On a GPU, what CUDA reports. On a CPU, the free memory of the machine or its container divided by the number of
    local processes; a huge number if neither is known.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [known for known in (system_memory(), container_memory()) if known is not None]
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return min(found) // processes if found else 2**62  # unknown: no run is refused


def system_memory() -> int | None:
    """The machine's available memory in bytes, from Linux's /proc/meminfo; None if that cannot be read."""
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def container_memory(group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The bytes left until a container's memory limit (cgroup v2); None if there is no limit."""
    try:
        return int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
    except (OSError, ValueError):  # "max" is no limit
        return None
