"""kohya's format, which A1111, ComfyUI and Diffusers read: its names, alphas and header.

The header follows kohya's trainer (library/train_util.py, sai_model_spec.py of sd-scripts) and modelspec 1.0.1.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...models.original.families import families
from ...models.original.modules import NORM
from ..adapter import Adapter, ModuleName
from ..aside import Later
from ..kinds.kind import Kind
from ..kinds.lora import LoraKind
from ..lora import Lora
from .bases import decide_base, true_of
from .body import Body
from .files import MODEL_HASH
from .names import kinds_of_modules, to_kohya

VERSIONS = {"sd15": "sd_v1", "sd21": "sd_v2", "sdxl": "sdxl_base_v1-0", "sdxl-refiner": "sdxl_refiner_v1-0"}
ARCHITECTURES = {
    "sd15": "stable-diffusion-v1", "sd21": "stable-diffusion-v2-512", "sdxl": "stable-diffusion-xl-v1-base",
    "sdxl-refiner": "stable-diffusion-xl-v1-refiner",
}  # fmt: skip
RESOLUTIONS = {"sd15": "512x512", "sd21": "512x512", "sdxl": "1024x1024", "sdxl-refiner": "1024x1024"}
ORIGINAL = "https://github.com/Stability-AI/generative-models"


def base_of(lora: Lora) -> str:
    """The LoRA's base model, as stated or as guessed from its modules.

    Raises `InputError` if it cannot be found out.
    """
    base = lora.base or decide_base(lora.adapters, header=lora.metadata).base
    if base is None:
        names = ", ".join(list(families())[:-1])
        raise InputError(f"these modules do not tell SD 1.x from SDXL; say which base it is for: {names}")
    return base


def tensors_of(lora: Lora) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the file to write, as (key, tensor).

    Raises `InputError` if the base model has no such module, or the format no names for what changes it.
    """
    base = base_of(lora)
    yield from lora.bundled.items()
    for module, adapter in lora.adapters.items():
        inside = ModuleName(module.part, module.path.removesuffix(".bias"))
        name = to_kohya(inside, base)
        try:
            fields = adapter.rules.for_kohya(adapter.tensors, what_it_is(inside, base, inside != module))
        except InputError as error:
            raise InputError(f"{module} {error}") from None
        for field, tensor in fields.items():
            yield f"{name}.{field}", tensor
        if adapter.rules.has_alpha:
            yield f"{name}.alpha", torch.tensor(adapter.alpha, dtype=torch.float32)


def what_it_is(module: ModuleName, base: str, bias: bool) -> str:
    """What of a module an adapter changes: "weight", "bias", "norm" or "norm bias", as in `Kind.elsewhere`."""
    is_norm = kinds_of_modules(base).get(module) == NORM
    return ("norm bias" if bias else "norm") if is_norm else "bias" if bias else "weight"


def header_of(lora: Lora, body: Body, name: str, given: Mapping[str, str]) -> dict[str, str]:
    """The entries of the header to write.

    Args:
        lora: the LoRA.
        body: the tensors of the file, as they are written.
        name: the LoRA's name, if its metadata has none.
        given: the caller's entries, which take precedence over entries about the tensors, those over the LoRA's own
            metadata, and those over defaults.
    """
    base = base_of(lora)
    own = true_of(lora.metadata, base)
    header = {**_defaults(base, own, name), **own, **_layout(lora), **given}
    trained = {key: value for key, value in header.items() if key.startswith("ss_")}
    model, legacy = body.hashes(trained)
    return {**header, MODEL_HASH: model, "sshs_legacy_hash": legacy}


def _layout(lora: Lora) -> dict[str, str]:
    """Header entries that follow from the tensors."""
    rules = {adapter.rules.name: adapter.rules for adapter in lora}
    ranked = [adapter for adapter in lora if adapter.rank] or list(lora)
    networks = {kind.network for kind in rules.values()}
    layout = {
        "ss_network_dim": common([adapter.rank for adapter in ranked]),
        "ss_network_alpha": common([adapter.alpha for adapter in ranked]),
        "ss_network_module": networks.pop() if len(networks) == 1 else Kind.network,
    }
    if layout["ss_network_module"] != LoraKind.network:
        names = {str(adapter.rules.network_args.get("algo", adapter.kind)) for adapter in lora}
        algorithm: dict[str, Any] = {"algo": "+".join(sorted(names))}
        for kind in rules.values():
            algorithm = {**kind.network_args, **algorithm}
        layout["ss_network_args"] = json.dumps(algorithm)
    return layout


def common(values: Sequence[float]) -> str:
    """The value if all are equal, else "Dynamic", as kohya's tools write it."""
    return f"{values[0]:g}" if len(set(values)) == 1 else "Dynamic"


def _defaults(base: str, metadata: Mapping[str, str], name: str) -> dict[str, str]:
    """Entries that readers expect in every file."""
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
        "modelspec.implementation": ORIGINAL if base.startswith("sdxl") else "diffusers",
        "modelspec.title": title,
        "modelspec.resolution": "768x768" if at_768 else RESOLUTIONS[base],
        "modelspec.prediction_type": "v" if by_velocity else "epsilon",
    }


def with_one_alpha(lora: Lora) -> Lora:
    """Convert a LoRA so that all modules of a part have the same alpha, the most frequent one, with unchanged effect.

    Diffusers' reader of kohya files gives all modules of a part that alpha, whatever the file says (the patterns by
    which it stores other alphas contain names of tensors, which match no module). The factors are rescaled to
    compensate. Kinds whose factors cannot absorb a strength, such as LoHa, which Diffusers does not read either, stay
    as they are.

    Raises:
        InputError: a rescaled factor does not fit its dtype; the message names the module.
    """
    alphas = {part: [a.alpha for a in lora.of_part(part).values() if a.rules.in_diffusers] for part in lora.parts}
    usual = {part: Counter(known).most_common(1)[0][0] for part, known in alphas.items() if known}
    made = {m: _with_alpha(m, adapter, usual.get(m.part, adapter.alpha)) for m, adapter in lora.adapters.items()}
    return replace(lora, adapters=made)


def _with_alpha(module: ModuleName, adapter: Adapter, alpha: float) -> Adapter:
    if adapter.alpha == alpha or not alpha or not adapter.rules.in_diffusers:
        return adapter
    tensors = adapter.rules.stronger(adapter.tensors, adapter.alpha / alpha)
    if tensors is None:
        return adapter
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(
                f"{module}: {name} does not fit {tensor.dtype} with alpha {alpha:g}; keep the alphas as they are"
            )
    if isinstance(adapter.tensors, Later):
        tensors = Later(tuple(tensors), lambda name: _stronger(adapter, adapter.alpha / alpha)[name])
    return Adapter(adapter.kind, tensors, alpha)


def _stronger(adapter: Adapter, factor: float) -> dict[str, Tensor]:
    tensors = adapter.rules.stronger(adapter.tensors, factor)
    assert tensors is not None  # it was not before
    return tensors
