"""The LoRA that models in memory carry as peft's layers, as training leaves them."""

from __future__ import annotations

from typing import Any

from ..errors import InputError, UnknownNameError
from ..seams.peft import adapter_names, adapter_of
from .adapter import Adapter, ModuleName
from .formats.keys import completed
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
            carried = adapter_names(module)
            names |= set(carried)
            if adapter in carried:
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
    meanings = {spelling.removesuffix(".weight"): meaning for spelling, meaning in spellings("dotted").items()}
    held = adapter_of(module, name, meanings)
    if held.variant and not any(kind.name in held.variant.lower() for kind in kinds_beside()):
        raise InputError(f"{held.variant} is a LoRA of a kind that fits no file format")
    if held.bias:
        raise InputError("a LoRA with a bias (lora_bias=True) fits no file format")
    kinds = {meanings[factor][0] for factor in held.factors} - {""}
    if len(kinds) != 1:
        raise InputError(f"a {held.package} adapter cannot be written to a file")
    (kind,) = kinds
    tensors = completed(kind, {meanings[factor][1]: tensor for factor, tensor in held.factors.items()})
    return Adapter(kind, *kind_of(kind, tensors).from_training(tensors, held.alpha, held.rank))
