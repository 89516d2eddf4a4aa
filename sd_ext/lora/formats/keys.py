"""Turn a file's tensors, by key, into adapters by module: what the formats have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from ...errors import InputError, UnknownNameError
from ..adapter import Adapter, ModuleName
from ..kinds import find_kind, kinds_beside, spellings

Fields = dict[str, Tensor]  # one adapter's tensors by the names that its kind defines, and "alpha"
Alphas = Callable[[ModuleName, int], "float | None"]  # (module, rank) -> alpha, if known


def split_kohya(key: str) -> tuple[str, tuple[str, str]]:
    """Split a key of kohya's format: `lora_unet_conv_in.alpha` is module `lora_unet_conv_in`, field ("", "alpha").

    Returns:
        The module's name in the file, and (kind, tensor) as in `sd_ext.lora.kinds.spellings`.

    Raises:
        UnknownNameError: no kind has such a tensor.
    """
    name, _, field = key.partition(".")
    known = spellings("kohya")
    if field not in known:
        raise UnknownNameError(f"kind of tensor in {key!r}", field, known)
    return name, known[field]


def split_dotted(key: str) -> tuple[str, tuple[str, str]]:
    """Split a key of Diffusers' or peft's formats, such as `unet.conv_in.lora_A.weight`.

    Returns:
        The module's path in the file, and (kind, tensor) as in `sd_ext.lora.kinds.spellings`.

    Raises:
        UnknownNameError: no kind has such a tensor.
    """
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
    """Group a file's tensors by module.

    Args:
        tensors: by key.
        split: splits a key: `split_kohya` or `split_dotted`.
        module_of: the module for a name in the file.

    Returns:
        The kind ("" if only an alpha or the like was found) and the tensors of every module.

    Raises:
        InputError: an unknown key, two names for one module, or one module with two kinds.
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
    """Make adapters of the tensors that `collect` has grouped.

    Args:
        found: the result of `collect`.
        alpha_of: the alpha of modules that have no alpha tensor; where it returns None, alpha is the rank.

    Raises:
        InputError: a module's tensors do not make an adapter; the message names the module.
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
    """Convert tensors as they were read to the form that an `Adapter` of this kind has.

    Args:
        kind: the kind's name.
        fields: the tensors that were read.

    Raises:
        InputError: the tensors do not fit together.
    """
    for rules in (find_kind(kind), *kinds_beside()):
        fields = rules.complete(fields)
    return fields
