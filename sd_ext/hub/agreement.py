"""Check that a LoRA's two files (Diffusers' and kohya's format) load, and that both describe the same change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from ..lora import Adapter


def check_agreement(first: Path, second: Path) -> None:
    """Raise `InputError` unless two LoRA files change the same modules in the same way, up to rounding.

    DoRA's change also depends on the base model's weights, which are not available here. Everything else that
    determines the change (`Adapter.decisive`: product and magnitudes) is compared.

    Args:
        first, second: the files.
    """
    from ..lora import read_lora

    one, other = read_lora(first), read_lora(second)
    if strange := sorted(map(str, one.adapters.keys() ^ other.adapters.keys())):
        raise InputError(f"{first.name} and {second.name} are not the same LoRA: only one of them has {strange[0]}")
    for module, adapter in one.adapters.items():
        if not _agree(adapter, other.adapters[module]):
            raise InputError(f"{first.name} and {second.name} are not the same LoRA: they differ in {module}")


def _agree(one: Adapter, other: Adapter) -> bool:
    """Whether two adapters of one module make the same change, up to the rounding of their dtypes."""
    import torch

    ours, theirs = one.decisive, other.decisive
    types = {tensor.dtype for adapter in (one, other) for tensor in adapter.tensors.values()}
    # A strength moved from alpha into a factor is rounded once; a product of two rounded factors errs by both.
    tolerance = max(4 * max(torch.finfo(kind).eps for kind in types), 1e-5)
    return len(ours) == len(theirs) and all(_close(a, b, tolerance) for a, b in zip(ours, theirs, strict=True))


def _close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two tensors of equally many numbers differ by at most `tolerance` of the first's Frobenius norm."""
    if one.numel() != other.numel():
        return False
    one, other = one.flatten().double(), other.flatten().double()
    return bool((one - other).norm() <= tolerance * one.norm())


def check_diffusers(path: Path, family: str) -> None:
    """Raise `InputError` unless Diffusers' own loader reads the file and finds the LoRA's strengths in it.

    Args:
        path: the LoRA file in Diffusers' format.
        family: "sd15", "sd21" or "sdxl", which decides the loader.
    """
    from diffusers.loaders import StableDiffusionLoraLoaderMixin, StableDiffusionXLLoraLoaderMixin

    loader = StableDiffusionXLLoraLoaderMixin if family == "sdxl" else StableDiffusionLoraLoaderMixin
    try:
        loaded = loader.lora_state_dict(
            str(path.parent),
            weight_name=path.name,
            local_files_only=True,
            use_safetensors=True,
            return_lora_metadata=True,
        )
    except Exception as error:  # anything at all can be wrong with a file
        raise InputError(f"Diffusers cannot load {path.name}: {' '.join(str(error).split())}") from error
    tensors, settings = loaded[0], loaded[-1]
    if strange := [key for key in tensors if "lora" not in key]:  # what load_lora_weights refuses
        raise InputError(f"Diffusers cannot load {path.name}: {strange[0]} is not a LoRA's tensor")
    if not settings:
        raise InputError(f"{path.name} does not say its strengths (lora_adapter_metadata); Diffusers would guess them")
