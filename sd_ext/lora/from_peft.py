"""From models that carry a peft adapter, as training leaves them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..errors import InputError, UnknownNameError
from .adapter import Adapter, ModuleName
from .formats.keys import PRODUCTS, column
from .lora import Lora
from .weights import canonical, models_by_part


def from_peft(models: Any, adapter: str = "default", base: str | None = None) -> Lora:
    """The LoRA, DoRA, rsLoRA, LoHa or LoKr that models carry.

    Args:
        models: a pipeline, or models by part, with adapters of `model.add_adapter`, peft's `inject_adapter_in_model`
            or `PeftModel`. Models without one are passed over.
        adapter: its name.
        base: "sd15", "sd21" or "sdxl", if known.

    Strengths are the configured ones, whatever scale the models run at. The tensors are the models' own, not copies.
    Where an initialisation changed the base (PiSSA, OLoRA), this is the change from that altered base; subtract what
    was there at the start to get one for the original: `merge([(after, 1), (before, -1)])`.

    Raises:
        InputError: no such adapter, or one of a kind that no file can hold.
    """
    found: dict[ModuleName, Adapter] = {}
    names: set[str] = set()
    for part, model in models_by_part(models).items():
        for path, module in model.named_modules():
            strengths = getattr(module, "scaling", None)
            if not (hasattr(module, "get_base_layer") and isinstance(strengths, dict)):
                continue
            names |= set(strengths)
            if adapter in strengths:
                name = canonical(part, path)
                try:
                    found[name] = _adapter_of(module, adapter)
                except InputError as error:
                    raise InputError(f"{name}: {error}") from None
    if not found:
        if names:
            raise UnknownNameError("adapter", adapter, names)
        raise InputError("the models carry no peft adapter")
    return Lora(found, base=base)


def _adapter_of(module: Any, name: str) -> Adapter:
    if name in getattr(module, "lora_A", {}):
        return _lora(module, name)
    tensors = {
        field: getattr(module, key)[name].detach()
        for key, (_, field) in PRODUCTS.items()
        if name in getattr(module, key, {})
    }
    kinds = {kind for key, (kind, _) in PRODUCTS.items() if name in getattr(module, key, {})}
    if len(kinds) != 1:
        raise InputError(f"a {type(module).__module__.rpartition('.')[0]} adapter cannot be written to a file")
    (kind,) = kinds
    made = Adapter(kind, tensors, 1.0)
    scale = module.alpha[name] / module.r[name]
    if made.rank:
        return Adapter(kind, tensors, scale * made.rank)
    # A LoKr of two whole factors has no rank, and readers give it strength 1.
    return Adapter(kind, {**tensors, "w1": tensors["w1"] * scale}, 1.0)


def _lora(module: Any, name: str) -> Adapter:
    down, up = module.lora_A[name], module.lora_B[name]
    if getattr(up, "bias", None) is not None:
        raise InputError("a LoRA with a bias (lora_bias=True) fits no file format")
    variant = getattr(module, "lora_variant", {}).get(name)
    if variant is not None and "dora" not in type(variant).__name__.lower():
        raise InputError(f"{type(variant).__name__} is a LoRA of a kind that fits no file format")
    tensors: dict[str, Tensor] = {"down": down.weight.detach(), "up": up.weight.detach()}
    magnitudes: Mapping[str, nn.Module] = getattr(module, "lora_magnitude_vector", {})
    if name in magnitudes:
        tensors["dora"] = column(magnitudes[name].weight.detach(), tensors)  # type: ignore[arg-type]
    return Adapter("lora", tensors, _alpha(module, name, down.weight.shape[0]))


def _alpha(module: Any, name: str, rank: int) -> float:
    """The alpha for a strength of alpha / rank: rsLoRA's is alpha / sqrt(rank) (arXiv:2312.03732)."""
    by_root = getattr(module, "use_rslora", None)
    if not isinstance(by_root, dict):  # peft before 0.19 keeps the strength only
        return float(module.scaling[name] * rank)
    alpha = float(module.lora_alpha[name])
    return alpha * rank**0.5 if by_root.get(name) else alpha
