"""Extract the LoRA from models in memory that have peft layers, as after training."""

from __future__ import annotations

from typing import Any

from ..errors import InputError, UnknownNameError
from ..seams.peft import adapter_names, adapter_of
from .adapter import Adapter, ModuleName
from .formats.keys import bias_of, completed
from .kinds import kind_of, kinds_beside, spellings
from .lora import Lora
from .weights import canonical, models_by_part


def from_peft(models: Any, adapter: str = "default", base: str | None = None) -> Lora:
    """Extract the LoRA, DoRA, rsLoRA, LoHa or LoKr from models in memory.

    Args:
        models: a pipeline, or models by part, with adapters added by `model.add_adapter`, peft's
            `inject_adapter_in_model` or `PeftModel`. Models without adapters are skipped.
        adapter: the adapter's name.
        base: "sd15", "sd21" or "sdxl", if known.

    Returns:
        The LoRA at its configured strength, whatever scale the models currently use. The tensors are the models' own,
        not copies. If the initialisation changed the base weights (PiSSA, OLoRA), the result is relative to those
        changed weights; for one relative to the original base, subtract the LoRA from before training: `merge([(after,
        1), (before, -1)])`.

    Raises:
        InputError: there is no such adapter, or no file format can hold its kind.
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
                    found |= _adapters_of(name, module, adapter)
                except InputError as error:
                    raise InputError(f"{name}: {error}") from None
    if not found:
        if names:
            raise UnknownNameError("adapter", adapter, names)
        raise InputError("the models carry no peft adapter")
    return Lora(found, base=base)


def _adapters_of(name: ModuleName, module: Any, adapter: str) -> dict[ModuleName, Adapter]:
    """What an adapter does to a layer's weight, and to its bias if it has one of its own (peft's `lora_bias`)."""
    meanings = {spelling.removesuffix(".weight"): meaning for spelling, meaning in spellings().items()}
    held = adapter_of(module, adapter, meanings)
    if held.variant and not any(kind.name in held.variant.lower() for kind in kinds_beside()):
        raise InputError(f"{held.variant} is a LoRA of a kind that fits no file format")
    if held.bias is not None and held.variant:
        raise InputError("a DoRA with a bias (lora_bias=True) is trained otherwise than peft merges it")
    kinds = {meanings[factor].kind for factor in held.factors} - {""}
    if len(kinds) != 1:
        raise InputError(f"a {held.package} adapter is not read from memory; read the folder that peft saves it in")
    (kind,) = kinds
    tensors = completed(kind, {meanings[factor].tensor: tensor for factor, tensor in held.factors.items()})
    made = {name: Adapter(kind, *kind_of(kind, tensors).from_training(tensors, held.alpha, held.rank))}
    if held.bias is not None:
        made[bias_of(name)] = Adapter("diff", {"diff": held.bias * (held.alpha / held.rank)}, 1.0)
    return made
