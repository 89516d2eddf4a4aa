"""Diffusers' format: peft's names under each part's prefix, strengths in the header as peft's settings."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
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
from .keys import Alphas
from .names import to_text_model

SETTINGS = "lora_adapter_metadata"


def tensors_of(lora: Lora) -> dict[str, Tensor]:
    """The file's tensors, by key.

    Raises:
        InputError: what Diffusers' loader cannot read: LoHa, LoKr, DoRA over inputs, or DoRA on some modules only.
    """
    tensors = {}
    for module, adapter in lora.adapters.items():
        path = module.path if module.part == "unet" else to_text_model(module.path)
        try:
            made = adapter.rules.for_diffusers(adapter.tensors, module.part)
        except InputError as error:
            raise InputError(f"{module} {error}") from None
        tensors |= {f"{module.part}.{path}.{key}": tensor.detach().cpu() for key, tensor in made.items()}
    for part in lora.parts:
        for kind in kinds_beside():
            if len({kind.beside in adapter.tensors for adapter in lora.of_part(part).values()}) > 1:
                raise InputError(
                    f"{part} has {kind.name} on some modules only, which Diffusers cannot read; write kohya's format"
                )
    return tensors


def header_of(lora: Lora) -> dict[str, str]:
    """The header's entries, with peft's settings of every part."""
    settings = {f"{part}.{key}": value for part in lora.parts for key, value in _settings(lora.of_part(part)).items()}
    return {**lora.metadata, "format": "pt", SETTINGS: json.dumps(settings, sort_keys=True)}


def _settings(adapters: Mapping[str, Adapter]) -> dict[str, Any]:
    """Arguments of peft's LoraConfig. Only such as every version of peft knows: an unknown one fails the load.

    The paths of text encoders go without `text_model.`: peft matches from the right, so that they fit the models of
    transformers 4 and 5.
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
    """What decides strength in peft's settings."""

    lora_alpha: float | None = None
    alpha: float | None = None
    alpha_pattern: dict[str, float] | None = None
    use_rslora: bool | None = None


PATTERN = re.compile(r"\^?[\w.\\-]*(?:\.\*[\w.\\-]*){0,2}\$?")
"""A module's path, or the few regular expressions that are tried quickly: others could keep a reader busy for ever."""


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
    """The alpha of a module by its part's peft settings; rsLoRA's alpha / sqrt(rank) as alpha / rank.

    Raises:
        InputError: settings that are not peft's.
    """
    for part, known in settings.items():
        _check_strengths(part, known)

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
    """peft's settings by part, from a Diffusers file's header. Raises `InputError` where they are damaged."""
    if not header.get(SETTINGS):
        return {}
    settings = parse_json(header[SETTINGS], f"{SETTINGS} in the header", dict[str, Any])
    parts: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = value
    return parts
