"""kohya's format, which A1111, ComfyUI and Diffusers read: names, alphas and the header's entries.

The header follows kohya's trainer (library/train_util.py, sai_model_spec.py of sd-scripts) and modelspec 1.0.1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from safetensors.torch import save
from torch import Tensor

from ...errors import InputError
from ..lora import Lora, common
from .bases import base_from_header, guess_base
from .keys import KOHYA_FIELDS
from .names import to_kohya

VERSIONS = {"sd15": "sd_v1", "sd21": "sd_v2", "sdxl": "sdxl_base_v1-0"}
ARCHITECTURES = {
    "sd15": "stable-diffusion-v1", "sd21": "stable-diffusion-v2-512", "sdxl": "stable-diffusion-xl-v1-base",
}  # fmt: skip
RESOLUTIONS = {"sd15": "512x512", "sd21": "512x512", "sdxl": "1024x1024"}
ORIGINAL = "https://github.com/Stability-AI/generative-models"
LEGACY_HASH = slice(0x100000, 0x110000)  # of the file's bytes
_SPELLING = {meaning: field for field, meaning in KOHYA_FIELDS.items()}


def base_of(lora: Lora) -> str:
    """The base model, told or guessed. Raises `InputError` where its modules do not tell."""
    base = lora.base or base_from_header(lora.metadata) or guess_base(lora.adapters)
    if base is None:
        raise InputError("these modules do not tell SD 1.x from SDXL; say which base it is for: sd15, sd21 or sdxl")
    return base


def tensors_of(lora: Lora) -> dict[str, Tensor]:
    """The file's tensors. Raises `InputError` where the base has no such module."""
    is_sdxl, tensors = base_of(lora) == "sdxl", dict(lora.bundled)
    for module, adapter in lora.adapters.items():
        name = to_kohya(module, is_sdxl)
        for field, tensor in adapter.tensors.items():
            spelled = _SPELLING["", "dora"] if field == "dora" else _SPELLING[adapter.kind, field]
            tensors[f"{name}.{spelled}"] = tensor.detach().cpu()
        tensors[f"{name}.alpha"] = torch.tensor(adapter.alpha, dtype=torch.float32)
    return tensors


def header_of(lora: Lora, tensors: Mapping[str, Tensor], name: str, given: Mapping[str, str]) -> dict[str, str]:
    """The header's entries: what the caller gave, then what the tensors tell, then what the LoRA came with."""
    header = {**_defaults(base_of(lora), lora.metadata, name), **lora.metadata, **_layout(lora), **given}
    trained = {key: value for key, value in header.items() if key.startswith("ss_")}
    model, legacy = hashes(tensors, trained)
    return {**header, "sshs_model_hash": model, "sshs_legacy_hash": legacy}


def _layout(lora: Lora) -> dict[str, str]:
    """Entries that follow from the tensors."""
    kinds = {adapter.kind for adapter in lora}
    dora = any("dora" in adapter.tensors for adapter in lora)
    layout = {
        "ss_network_dim": common([adapter.rank for adapter in lora]),
        "ss_network_alpha": common([adapter.alpha for adapter in lora]),
        "ss_network_module": "networks.lora" if kinds == {"lora"} and not dora else "lycoris.kohya",
    }
    if layout["ss_network_module"] == "lycoris.kohya":
        algorithm = {"algo": "+".join(sorted(kinds)), **({"dora_wd": True, "wd_on_output": True} if dora else {})}
        layout["ss_network_args"] = json.dumps(algorithm)
    return layout


def _defaults(base: str, metadata: Mapping[str, str], name: str) -> dict[str, str]:
    """What readers expect of every file."""
    by_velocity = metadata.get("modelspec.prediction_type", "epsilon").startswith("v")
    at_768 = base == "sd21" and by_velocity
    architecture = "stable-diffusion-v2-768-v" if at_768 else ARCHITECTURES[base]
    title = metadata.get("ss_output_name", name)
    return {
        "ss_v2": str(base == "sd21"),
        "ss_base_model_version": VERSIONS[base],
        "ss_network_args": "{}",
        "ss_output_name": title,
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": ORIGINAL if base == "sdxl" else "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": "768x768" if at_768 else RESOLUTIONS[base],
        "modelspec.prediction_type": "v" if by_velocity else "epsilon",
    }


def hashes(tensors: Mapping[str, Tensor], trained: Mapping[str, str]) -> tuple[str, str]:
    """A1111's sshs_model_hash and sshs_legacy_hash.

    Both are of a file with only the ss_ entries in its header, so that editing a title does not change them: SHA-256
    of all that follows the header, and the first 8 digits of that of the 64 KiB after the first MiB.
    """
    content = save({key: tensor.contiguous() for key, tensor in tensors.items()}, dict(trained))
    start = 8 + int.from_bytes(content[:8], "little")
    model = hashlib.sha256(memoryview(content)[start:]).hexdigest()
    return model, hashlib.sha256(content[LEGACY_HASH]).hexdigest()[:8]
