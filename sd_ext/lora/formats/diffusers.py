"""Diffusers' format: peft's names under each part's prefix; the strengths are peft's settings in the header."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...declared import check, shown
from ...errors import InputError
from ...reading import parse_json
from ...seams.peft import pattern_for
from ..adapter import Adapter, ModuleName
from ..kinds import kinds_beside
from ..lora import Lora
from .bases import true_of
from .keys import Alphas
from .names import to_text_model

SETTINGS = "lora_adapter_metadata"  # the header entry with peft's settings, as JSON


def tensors_of(lora: Lora) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the file to write, as (key, tensor).

    Raises:
        InputError: something that Diffusers' loader cannot read: LoHa, LoKr, DoRA over inputs, or DoRA on only some of
            a part's modules.
    """
    for part in lora.parts:
        for kind in kinds_beside():
            if len({kind.beside in adapter.tensors for adapter in lora.of_part(part).values()}) > 1:
                raise InputError(
                    f"{part} has {kind.name} on some modules only, which Diffusers cannot read; write kohya's format"
                )
    for module, adapter in lora.adapters.items():
        path = module.path if module.part == "unet" else to_text_model(module.path)
        try:
            made = adapter.rules.for_diffusers(adapter.tensors, module.part)
        except InputError as error:
            raise InputError(f"{module} {error}") from None
        yield from ((f"{module.part}.{path}.{key}", tensor) for key, tensor in made.items())


def header_of(lora: Lora) -> dict[str, str]:
    """The entries of the header to write, including peft's settings of every part."""
    settings = {f"{part}.{key}": value for part in lora.parts for key, value in _settings(lora.of_part(part)).items()}
    return {**true_of(lora.metadata, lora.base), "format": "pt", SETTINGS: json.dumps(settings, sort_keys=True)}


def _settings(adapters: Mapping[str, Adapter]) -> dict[str, Any]:
    """Arguments of peft's LoraConfig for one part.

    Only those that all versions of peft know: an unknown one fails to load.

    Args:
        adapters: path -> adapter. Text encoders' paths lack `text_model.`, which is right for transformers 4 and 5:
            peft compares paths from the right.
    """
    rank = Counter(adapter.rank for adapter in adapters.values()).most_common(1)[0][0]
    alpha = Counter(adapter.alpha for adapter in adapters.values()).most_common(1)[0][0]
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {path: adapter.rank for path, adapter in adapters.items() if adapter.rank != rank},
        "alpha_pattern": {path: adapter.alpha for path, adapter in adapters.items() if adapter.alpha != alpha},
        "target_modules": sorted(adapters),
        "use_rslora": False,
        "bias": "none",
        **{
            kind.flag: any(kind.beside in adapter.tensors for adapter in adapters.values())
            for kind in kinds_beside()
            if kind.flag
        },
    }


@dataclass
class Strengths:
    """The entries of peft's settings that determine strength."""

    lora_alpha: float | None = None
    alpha: float | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool | None = None


PATTERN = re.compile(r"\^?[\w.\\-]*(?:\.\*[\w.\\-]*){0,2}\$?")
"""A module's path or a simple regular expression. Others are refused, since matching them could take for ever."""


OTHER_BASES = "pissa", "olora", "corda", "loftq", "lora_ga"
"""Beginnings of peft's `init_lora_weights` that change the base's weights before training."""
OTHERWISE = (
    "alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "monteclora_config", "use_bdlora",
    "use_qalora",
)  # fmt: skip
"""Other settings of peft's that make something else of the same tensors."""


def _check_computed(settings: Mapping[str, Any]) -> None:
    """Raise `InputError` if the tensors mean something else than what is added to the model as it was."""
    init = settings.get("init_lora_weights")
    if isinstance(init, str) and init.startswith(OTHER_BASES):
        raise InputError(
            f"its settings say init_lora_weights = {shown(init)}: it was trained on changed weights, not the model's; "
            "save it with peft's path_initial_model_for_weight_conversion, which makes a LoRA of the model itself"
        )
    if others := [name for name in OTHERWISE if settings.get(name)]:
        raise InputError(f"its settings have {', '.join(others)}, with which peft computes otherwise than as a LoRA")


def _check_strengths(part: str, settings: Mapping[str, Any]) -> None:
    where = f"the settings of {part} in the header"
    check(settings, Strengths, where)
    for pattern in settings.get("alpha_pattern") or ():
        try:
            fine = len(pattern) < 1000 and PATTERN.fullmatch(pattern) and re.compile(pattern)
        except re.error:
            fine = None
        if not fine:
            raise InputError(f"{where}: alpha_pattern names {shown(pattern)}, which is no module's path")


def alphas_of(settings: Mapping[str, Mapping[str, Any]]) -> Alphas:
    """Make a function that finds a module's alpha in peft's settings.

    Args:
        settings: part -> peft's settings.

    Returns:
        A function of (module, rank) to alpha, or None if the settings do not cover that part. The strength of rsLoRA,
        alpha / sqrt(rank), is converted to a plain alpha / rank.

    Raises:
        InputError: these are not peft's settings.
    """
    for part, known in settings.items():
        _check_strengths(part, known)
        _check_computed(known)

    def alpha(module: ModuleName, rank: int) -> float | None:
        known = settings.get(module.part)
        if not known:
            return None
        try:
            patterns = dict(known.get("alpha_pattern") or {})
            path = module.path if module.part == "unet" else to_text_model(module.path)
            # A pattern matches from the right; one that begins with ^, the whole path, with or without text_model.
            key = pattern_for(path, patterns) or pattern_for(module.path, patterns)
            strength = float(patterns[key] if key else known.get("lora_alpha", known.get("alpha", rank)))
            return strength * rank**0.5 if known.get("use_rslora") else strength
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"the settings of {module.part} in the header cannot be read: {error}") from error

    return alpha


def settings_in(header: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Read peft's settings, by part, from a Diffusers file's header. Raises `InputError` if they are damaged."""
    if not header.get(SETTINGS):
        return {}
    settings = parse_json(header[SETTINGS], f"{SETTINGS} in the header", dict[str, Any])
    parts: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = value
    return parts
