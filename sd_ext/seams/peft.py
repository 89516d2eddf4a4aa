"""peft's private parts: adapters in memory, and how settings by module are matched."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from .seam import declare, seam

FACTORS = (
    *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
    *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
)
"""What peft's LoHa and LoKr layers call their factors, which is also what files call them."""


@dataclass(frozen=True)
class PeftAdapter:
    """An adapter that a layer carries; the tensors are the layer's own.

    Args:
        factors: by peft's names. Of a LoRA "lora_A" (rank, in, ...), "lora_B" (out, rank, ...) and of a DoRA
            "lora_magnitude_vector"; of LoHa and LoKr those of `FACTORS` that it has.
        alpha: such that the configured strength is alpha / rank, for rank-stabilised LoRA too.
        rank: as configured.
        bias: whether the upper factor has a bias.
        variant: class of a LoRA's variant, in lower case, "" for none: "doralinearvariant", ...
        kind: package of the layer's class, for messages.
    """

    factors: dict[str, Tensor]
    alpha: float
    rank: int
    bias: bool
    variant: str
    kind: str


def adapter_names(module: nn.Module) -> tuple[str, ...]:
    """The names of the adapters that a layer carries; none if it is no layer of peft's."""
    strengths = getattr(module, "scaling", None)
    return tuple(strengths) if hasattr(module, "get_base_layer") and isinstance(strengths, dict) else ()


@seam(
    *("scaling", "lora_A", "lora_B", "lora_variant", "lora_magnitude_vector", "use_rslora", "lora_alpha", "alpha", "r"),
    seen="peft 0.18 to 0.21, tuners.lora.layer and tuners.lycoris_utils",
    gone="saving the adapters of models in memory",
)
def adapter_of(module: Any, name: str) -> PeftAdapter:
    """An adapter that a layer carries.

    Args:
        module: a layer for which `adapter_names` has the name.
    """
    kind = type(module).__module__.rpartition(".")[0]
    if name not in getattr(module, "lora_A", {}):
        factors = {key: getattr(module, key)[name].detach() for key in FACTORS if name in getattr(module, key, {})}
        return PeftAdapter(factors, float(module.alpha[name]), int(module.r[name]), False, "", kind)
    down, up = module.lora_A[name], module.lora_B[name]
    factors = {"lora_A": down.weight.detach(), "lora_B": up.weight.detach()}
    if name in module.lora_magnitude_vector:
        factors["lora_magnitude_vector"] = module.lora_magnitude_vector[name].weight.detach()
    found = module.lora_variant.get(name)
    variant = "" if found is None else type(found).__name__.lower()
    bias = getattr(up, "bias", None) is not None
    rank = int(down.weight.shape[0])
    return PeftAdapter(factors, _alpha(module, name, rank), rank, bias, variant, kind)


def _alpha(module: Any, name: str, rank: int) -> float:
    """The alpha for a strength of alpha / rank: rank-stabilised LoRA's is alpha / sqrt(rank) (arXiv 2312.03732)."""
    if not isinstance(module.use_rslora, dict):  # peft 0.18 keeps the strength only
        return float(module.scaling[name] * rank)
    alpha = float(module.lora_alpha[name])
    return alpha * rank**0.5 if module.use_rslora.get(name) else alpha


@seam(
    "lycoris_utils",
    "LycorisLayer",
    seen="peft 0.18 to 0.21, tuners.lycoris_utils",
    gone="estimates of a LoHa or LoKr run's memory",
)
def let_all_act(model: nn.Module) -> None:
    """Have every LoHa and LoKr of a model act, though it trains: they draw a number whether to."""
    from peft.tuners.lycoris_utils import LycorisLayer

    for module in model.modules():
        if isinstance(module, LycorisLayer):
            module.training = False


declare(
    f"{__name__}.pattern_for",
    "get_pattern_key",
    seen="peft 0.18 to 0.21, utils.other",
    gone="strengths of single modules in a LoRA's header",
    fallback="the rule as it was, written here",
)


def pattern_for(path: str, patterns: Iterable[str]) -> str | None:
    """The first of peft's patterns, such as those of `alpha_pattern`, that holds for a module; None if none does.

    A pattern is a regular expression for the end of the path, from a dot on; one that begins with ^ for all of it.
    """
    return next((pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", path)), None)
