"""peft's private parts: adapters in memory, and how settings by module are matched."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .seam import declare, seam


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter of one layer; the tensors are the layer's own, not copies.

    Args:
        factors: by peft's names: "lora_A" (rank, in, ...), "lora_B" (out, rank, ...), "hada_w1_a", ...
        alpha: the configured strength is alpha / rank; for rank-stabilised LoRA alpha is converted accordingly.
        rank: as configured.
        bias: the bias of a factor (out,), at the strength of the factors; None if there is none.
        variant: the class name of a LoRA's variant, such as "DoraLinearVariant"; "" for none.
        package: the package of the layer's class, for messages.
    """

    factors: dict[str, Tensor]
    alpha: float
    rank: int
    bias: Tensor | None
    variant: str
    package: str


def adapter_names(module: Any) -> tuple[str, ...]:
    """The names of a layer's adapters; empty if it is no peft layer."""
    if not hasattr(module, "get_base_layer"):
        return ()
    held = [getattr(module, name, None) for name in ("scaling", *getattr(module, "adapter_layer_names", ()))]
    by_name = [found for found in held if isinstance(found, dict | nn.ParameterDict | nn.ModuleDict)]
    return tuple(dict.fromkeys(name for found in by_name for name in found))


@seam(
    *("scaling", "adapter_layer_names", "lora_variant", "use_rslora", "lora_alpha", "alpha", "r"),
    seen="peft 0.18 to 0.21, tuners.lora.layer and tuners.lycoris_utils",
    gone="saving the adapters of models in memory",
)
def adapter_of(module: Any, name: str, factors: Iterable[str]) -> PeftAdapter:
    """Read an adapter from a layer.

    Args:
        module: a layer for which `adapter_names` contains `name`.
        name: the adapter's name.
        factors: peft's names of all factors to look for.

    Returns:
        The adapter with the factors that it has; without any, and with alpha and rank 0, if it has none of them or no
        strength (peft's BOFT).
    """
    held: dict[str, Tensor] = {}
    bias: Tensor | None = None
    for factor in factors:
        by_name = getattr(module, factor, None)
        if isinstance(by_name, nn.ParameterDict | nn.ModuleDict) and name in by_name:
            found: Any = by_name[name]  # type: ignore[operator]
            own: Any = getattr(found, "bias", None)
            bias = bias if own is None else own.detach()
            tensor: Any = found.weight if isinstance(found, nn.Module) else found
            held[factor] = tensor.detach()
    package = type(module).__module__.rpartition(".")[0]
    if not held or not (hasattr(module, "lora_A") or hasattr(module, "alpha")):
        return PeftAdapter({}, 0.0, 0, bias, "", package)
    if not hasattr(module, "lora_A"):  # LyCORIS's kinds
        return PeftAdapter(held, float(module.alpha[name]), module.r[name], bias, "", package)
    variant = module.lora_variant.get(name)
    alpha, rank = float(module.lora_alpha[name]), module.r[name]
    if module.use_rslora.get(name):  # whose strength is alpha / sqrt(rank) (arXiv 2312.03732)
        alpha *= rank**0.5
    return PeftAdapter(held, alpha, rank, bias, "" if variant is None else type(variant).__name__, package)


@seam(
    *("scaling", "use_rslora", "lora_alpha", "alpha", "r"),
    seen="peft 0.18 to 0.21, tuners.lora.layer and tuners.lycoris_utils",
    gone="saying at which strength a calibration's LoRAs act",
)
def acting(module: Any) -> dict[str, float]:
    """The adapters that act in a layer, and the strength of each, 1 as it was trained; none where it has no adapters,
    or they are switched off or merged into its weights.
    """
    scaling = getattr(module, "scaling", None)
    if not isinstance(scaling, dict) or getattr(module, "disable_adapters", True):
        return {}
    alphas = module.lora_alpha if hasattr(module, "lora_alpha") else getattr(module, "alpha", {})
    rooted = getattr(module, "use_rslora", {})
    names = [name for name in module.active_adapters if name in scaling and name not in module.merged_adapters]
    wholes = {name: alphas[name] / module.r[name] ** (0.5 if rooted.get(name) else 1) for name in names}
    return {name: scaling[name] / whole for name, whole in wholes.items() if whole}


@seam(
    "LycorisLayer",
    "lycoris_utils",
    seen="peft 0.18 to 0.21, tuners.lycoris_utils",
    gone="estimates of a LoHa or LoKr run's memory",
)
def let_all_act(model: nn.Module) -> None:
    """Make every LoHa and LoKr layer of a model active in training mode, where it otherwise decides at random."""
    from peft.tuners.lycoris_utils import LycorisLayer

    for module in model.modules():
        if isinstance(module, LycorisLayer):
            module.training = False


@seam(
    "lora_B",
    seen="peft 0.18 to 0.21, tuners.lora.layer",
    gone="training of slider LoRAs",
)
def on_added(model: nn.Module, change: Callable[[Tensor], Tensor]) -> int:
    """Have a function change what every LoRA of a model adds to its layer's output, before its strength.

    Args:
        model: a model with LoRAs of any number of layers.
        change: called with the output (b, ...) of the second factor of each.

    Returns:
        The number of LoRAs.
    """
    adapted: list[Any] = [module for module in model.modules() if adapter_names(module)]
    found = [up for module in adapted for up in module.lora_B.values()]
    for up in found:
        up.register_forward_hook(lambda module, inputs, output: change(output))
    return len(found)


declare(
    f"{__name__}.pattern_for",
    "get_pattern_key",
    seen="peft 0.18 to 0.21, utils.other",
    gone="strengths of single modules in a LoRA's header",
    fallback="the rule as it was, written here",
)


def pattern_for(path: str, patterns: Iterable[str]) -> str | None:
    """Find which of peft's patterns, such as those of `alpha_pattern`, matches a module.

    Args:
        path: the module's path.
        patterns: regular expressions. Each must match the end of the path from a dot on, or the whole path.

    Returns:
        The first pattern that matches; None if none does.
    """
    return next((pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", path)), None)
