"""From tensors under a format's keys to adapters; what the formats have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from ...errors import InputError, UnknownNameError
from ..adapter import Adapter, ModuleName
from ..kinds import find_kind, kinds_beside, spellings

Fields = dict[str, Tensor]
Alphas = Callable[[ModuleName, int], "float | None"]


def split_kohya(key: str) -> tuple[str, tuple[str, str]]:
    """`lora_unet_conv_in.alpha` as its module's name and the field. Raises `UnknownNameError`."""
    name, _, field = key.partition(".")
    known = spellings("kohya")
    if field not in known:
        raise UnknownNameError(f"kind of tensor in {key!r}", field, known)
    return name, known[field]


def split_dotted(key: str) -> tuple[str, tuple[str, str]]:
    """`unet.conv_in.lora_A.weight` as its module's path and the field. Raises `UnknownNameError`."""
    plain = re.sub(r"\.(lora_[AB])\.\w+\.weight$", r".\1.weight", key)  # peft's own state: lora_A.default.weight
    if old := re.fullmatch(r"(.+\.to_(?:q|k|v|out))_lora\.(down|up)\.weight", plain):
        return old[1], ("lora", old[2])
    known = spellings("dotted")
    for field, meaning in known.items():
        if plain.endswith(f".{field}"):
            return plain[: -len(field) - 1], meaning
    raise UnknownNameError(f"kind of tensor in {key!r}", ".".join(key.split(".")[-2:]), known)


def collect(
    tensors: Mapping[str, Tensor],
    split: Callable[[str], tuple[str, tuple[str, str]]],
    module_of: Callable[[str], ModuleName],
) -> dict[ModuleName, tuple[str, Fields]]:
    """Kind and fields of every module.

    Raises:
        InputError: unknown keys, or two names for one module.
    """
    found: dict[ModuleName, tuple[str, Fields]] = {}
    called: dict[ModuleName, str] = {}
    for key in sorted(tensors):
        name, (kind, field) = split(key)
        module = module_of(name)
        before, fields = found.get(module, (kind, {}))
        if called.setdefault(module, name) != name or field in fields:
            raise InputError(f"{module} is given twice: as {called[module]} and as {name}")
        if kind and before and kind != before:
            raise InputError(f"{module} is both a {before} and a {kind}")
        fields[field] = tensors[key]
        found[module] = kind or before, fields
    return found


def assemble(found: dict[ModuleName, tuple[str, Fields]], alpha_of: Alphas) -> dict[ModuleName, Adapter]:
    """The adapters. An alpha of its own wins over `alpha_of`; with neither, alpha is the rank.

    Raises:
        InputError: names the module whose tensors do not make an adapter.
    """
    adapters = {}
    for module, (kind, fields) in found.items():
        try:
            adapters[module] = _adapter(module, kind, dict(fields), alpha_of)
        except InputError as error:
            raise InputError(f"{module}: {error}") from None
    return adapters


def _adapter(module: ModuleName, kind: str, fields: Fields, alpha_of: Alphas) -> Adapter:
    own = fields.pop("alpha", None)
    if own is not None and own.numel() != 1:
        raise InputError(f"alpha is {tuple(own.shape)}, not one number")
    if not kind:
        raise InputError(f"only {', '.join(fields) or 'alpha'} is there, and no factors")
    made = Adapter(kind, completed(kind, fields), 1.0)
    alpha = float(own.item()) if own is not None else alpha_of(module, made.rank)
    return Adapter(kind, made.tensors, float(made.rank or 1) if alpha is None else float(alpha))


def completed(kind: str, fields: Fields) -> Fields:
    """What was read of one adapter, in the form that an `Adapter` of this kind has.

    Raises:
        InputError: the tensors do not fit together.
    """
    for rules in (find_kind(kind), *kinds_beside()):
        fields = rules.complete(fields)
    return fields
