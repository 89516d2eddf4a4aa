"""Prepare tensors for writing to a file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Make tensors that safetensors can write: on the CPU, contiguous, and no two in the same memory.

    Args:
        tensors: any tensors by name, also views of one another. They are not changed.

    Returns:
        The same names; each tensor itself where it qualifies already, else a copy.
    """
    taken: set[int] = set()
    made = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu()
        storage = tensor.untyped_storage()
        alone = tensor.is_contiguous() and storage.nbytes() == tensor.nbytes and storage.data_ptr() not in taken
        taken.add(storage.data_ptr())
        made[name] = tensor if alone else tensor.clone(memory_format=torch.contiguous_format)
    return made
