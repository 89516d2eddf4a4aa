"""The LoRA that models in memory carry as peft's layers, as training leaves them."""

from __future__ import annotations

from typing import Any

from torch import nn

from ..errors import InputError, UnknownNameError
from .adapter import Adapter, ModuleName
from .formats.keys import Fields, completed
from .kinds import kind_of, kinds_beside, spellings
from .lora import Lora
from .weights import canonical, models_by_part


def from_peft(models: Any, adapter: str = "default", base: str | None = None) -> Lora:
    """The LoRA, DoRA, rsLoRA, LoHa or LoKr that models carry.

    Args:
        models: a pipeline, or models by part, with adapters of `model.add_adapter`, peft's `inject_adapter_in_model`
            or `PeftModel`. Models without one are passed over.
        adapter: its name.
        base: "sd15", "sd21" or "sdxl", if known.

    Returns:
        It at the configured strength, whatever scale the models run at. The tensors are the models' own, not copies.
        Where an initialisation changed the base (PiSSA, OLoRA), this is the change from that altered base; subtract
        what was there at the start to get one for the original: `merge([(after, 1), (before, -1)])`.

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
    kind, fields = _fields_of(module, name)
    tensors = completed(kind, fields)
    return Adapter(kind, *kind_of(kind, tensors).from_training(tensors, *_alpha_and_rank(module, name)))


def _fields_of(module: Any, name: str) -> tuple[str, Fields]:
    """The adapter's kind, and its tensors by the names that files with peft's spellings give them."""
    variant = getattr(module, "lora_variant", {}).get(name)
    if variant is not None and not any(kind.name in type(variant).__name__.lower() for kind in kinds_beside()):
        raise InputError(f"{type(variant).__name__} is a LoRA of a kind that fits no file format")
    kinds, fields = set(), {}
    for spelling, (kind, field) in spellings("dotted").items():
        held = getattr(module, spelling.removesuffix(".weight"), None)
        if not isinstance(held, (nn.ParameterDict, nn.ModuleDict)) or name not in held:
            continue
        found: Any = held[name]
        if getattr(found, "bias", None) is not None:
            raise InputError("a LoRA with a bias (lora_bias=True) fits no file format")
        fields[field] = (found.weight if isinstance(found, nn.Module) else found).detach()
        kinds |= {kind} - {""}
    if len(kinds) != 1:
        raise InputError(f"a {type(module).__module__.rpartition('.')[0]} adapter cannot be written to a file")
    return kinds.pop(), fields


def _alpha_and_rank(module: Any, name: str) -> tuple[float, int]:
    """Their quotient is the strength. Rank-stabilised LoRA configures it as alpha / sqrt(rank) (arXiv:2312.03732)."""
    rank = module.r[name]
    if not hasattr(module, "lora_alpha"):  # LyCORIS's kinds
        return float(module.alpha[name]), rank
    by_root = getattr(module, "use_rslora", None)
    if not isinstance(by_root, dict):  # peft before 0.19 keeps the strength only
        return float(module.scaling[name] * rank), rank
    alpha = float(module.lora_alpha[name])
    return alpha * rank**0.5 if by_root.get(name) else alpha, rank
