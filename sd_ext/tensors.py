"""Tensors made ready for a file."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def storable(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each contiguous and in memory of its own, as safetensors insists.

    Args:
        tensors: any; views of one another too. They stay as they are.

    Returns:
        The same tensors where they are so already, else copies.
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
