"""Turn a file's tensors, by key, into adapters by module.

A key is a module's name (`names`), then what of which kind of adapter the tensor is (`sd_ext.lora.kinds`), and peft may
put the adapter's name before the last word: `unet.conv_in.lora_A.my-style.weight`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...errors import InputError, UnknownNameError
from ...models.original.modules import has_bias
from ..adapter import Adapter, ModuleName
from ..kinds import Meaning, find_kind, kinds_beside, spellings
from ..kinds.kind import one
from .names import Place, find_module

Fields = dict[str, Tensor]  # one adapter's tensors by the names that its kind defines, and "alpha"
Alphas = Callable[[ModuleName, int], "float | None"]  # (module, rank) -> alpha, if known
OLD = re.compile(r"(?P<name>.+\.to_(?:q|k|v|out))_lora\.(?P<side>down|up)\.weight")  # Diffusers' first LoRA layers
USUAL = "lora_down.weight", "lora_A.weight", "hada_w1_a", "lokr_w1", "diff"
FACTOR = re.compile(r"lora_([A-Z]|up|down|mid)|(hada|lokr)_\w{2,4}|b?oft_\w")  # a tensor's name, never a module's
LONGEST = 3  # words of what follows a module's name


@dataclass
class Found:
    """What a file's keys say.

    Args:
        kinds: module, or its bias -> the kind; "" where only an alpha or the like was found.
        fields: the same -> tensors.
        places: what the names in the file mean.
        skipped: keys that mean nothing.
        empty: modules whose factors have rank 0, so that they change nothing.
    """

    kinds: dict[ModuleName, str] = field(default_factory=dict)
    fields: dict[ModuleName, Fields] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    empty: list[ModuleName] = field(default_factory=list)


def split(key: str, known: Mapping[str, Meaning] | None = None) -> tuple[str, Meaning, str]:
    """Split a key: `unet.conv_in.lora_A.my-style.weight` is `unet.conv_in`, a LoRA's `down`, of the adapter `my-style`.

    Args:
        key: the key.
        known: `spellings()`, if that has been called already.

    Returns:
        The module's name, what the tensor is, and the adapter's name ("" if the key has none).

    Raises:
        UnknownNameError: no kind has such a tensor.
    """
    if old := OLD.fullmatch(key):
        return old["name"], Meaning("lora", old["side"]), ""
    known, words = spellings() if known is None else known, key.split(".")
    for length in range(min(LONGEST, len(words) - 1), 1, -1):
        if (meaning := known.get(".".join(words[-length:]))) is not None:
            return ".".join(words[:-length]), meaning, ""
    end = words[-1:] if words[-1] == "weight" else []
    body = words[: len(words) - len(end)]
    if len(body) > 2 and (meaning := known.get(".".join([body[-2], *end]))) is not None:
        return ".".join(body[:-2]), meaning, body[-1]
    if len(words) > 1 and (meaning := known.get(words[-1])) is not None and not FACTOR.fullmatch(words[-2]):
        return ".".join(words[:-1]), meaning, ""
    end = ".".join(words[-2:] if len(words) > 2 else words[1:])
    near = difflib.get_close_matches(end, known, 3, 0.4) or USUAL
    raise UnknownNameError(f"kind of tensor in {key!r}", end, near)


def collect(tensors: Mapping[str, Tensor], part: str | None = None, skip: bool = False) -> Found:
    """Group a file's tensors by module.

    Args:
        tensors: by key.
        part: the part of the pipeline of names that do not say theirs.
        skip: leave out keys that mean nothing; they are listed in the result.

    Raises:
        InputError: a key that means nothing, two names for one module, or one module with two kinds.
    """
    found, called, adapters = Found(), dict[ModuleName, str](), set[str]()
    places: dict[str, Place] = {}
    known = spellings()
    for key in sorted(tensors):
        try:
            name, meaning, adapter = split(key, known)
            place = places[name] if name in places else find_module(name, part)
        except UnknownNameError:
            if not skip:
                raise
            found.skipped.append(key)
            continue
        places[name] = place
        adapters |= {adapter} - {""}
        if len(adapters) > 1:
            raise InputError(
                f"it holds several adapters, {' and '.join(sorted(adapters))}; only files with one are read"
            )
        if called.setdefault(place.module, name) != name:
            raise InputError(f"{place.module} is given twice: as {called[place.module]} and as {name}")
        _add(found, bias_of(place.module) if meaning.bias else place.module, meaning, key, tensors[key])
    found.places = list(places.values())
    found.empty = [module for module, fields in found.fields.items() if _is_empty(fields)]
    if len(found.empty) < len(found.fields):  # else the first of them is refused
        for module in found.empty:
            del found.fields[module]
    return found


def _is_empty(fields: Fields) -> bool:
    factors = [tensor for name, tensor in fields.items() if name not in ("alpha", "scalar")]
    return bool(factors) and not any(tensor.numel() for tensor in factors)


def _add(found: Found, module: ModuleName, meaning: Meaning, key: str, tensor: Tensor) -> None:
    before, fields = found.kinds.get(module, ""), found.fields.setdefault(module, {})
    if meaning.tensor in fields:
        raise InputError(f"{module} is given twice: {key} is there under another name")
    if meaning.kind and before and meaning.kind != before:
        raise InputError(f"{module} is both {one(before)} and {one(meaning.kind)}")
    fields[meaning.tensor] = tensor
    found.kinds[module] = meaning.kind or before


def configure(found: Found, settings: Mapping[str, Any]) -> None:
    """Make tensors what peft's settings say they are.

    Args:
        found: the result of `collect`, which is changed.
        settings: those in adapter_config.json.

    Raises:
        InputError: a module's tensors are not such; the message names the module.
    """
    for module, fields in found.fields.items():
        if kind := found.kinds[module]:
            try:
                found.fields[module] = find_kind(kind).configured(fields, settings, module.path)
            except (InputError, TypeError, ValueError) as error:
                raise InputError(f"{module}: {error}") from None


def bias_of(module: ModuleName) -> ModuleName:
    """What a module's bias is called."""
    return ModuleName(module.part, f"{module.path}.bias")


def assemble(found: Found, alpha_of: Alphas) -> dict[ModuleName, Adapter]:
    """Make adapters of the tensors that `collect` has grouped.

    Args:
        found: the result of `collect`.
        alpha_of: the alpha of modules that have no alpha tensor; where it returns None, it is the kind's usual one.

    Raises:
        InputError: a module's tensors do not make an adapter; the message names the module.
    """
    adapters: dict[ModuleName, Adapter] = {}
    for module, fields in found.fields.items():
        if fields.keys() == {"alpha"} and bias_of(module) in found.fields:
            continue  # of a module whose bias alone is changed
        try:
            adapters |= _adapters(module, found.kinds[module], dict(fields), alpha_of)
        except InputError as error:
            raise InputError(f"{module}: {error}") from None
    return adapters


def _adapters(module: ModuleName, kind: str, fields: Fields, alpha_of: Alphas) -> dict[ModuleName, Adapter]:
    own = number(fields.pop("alpha", None), "alpha")
    factor = number(fields.pop("scalar", None), "scalar")
    if not kind:
        raise InputError(f"only {', '.join(fields) or 'alpha'} is there, and no factors")
    made = Adapter(kind, completed(kind, fields), 1.0)
    alpha = own if own is not None else alpha_of(module, made.rank)
    alpha = made.rules.usual_alpha(made.tensors) if alpha is None else float(alpha)
    tensors = made.tensors if factor is None else made.rules.stronger(made.tensors, factor)
    if tensors is None:
        raise InputError(f"{one(made.rules.name)} has no scalar")
    adapter = Adapter(kind, tensors, alpha)
    bias = adapter.rules.of_bias(fields, adapter.scale)
    if bias is None:
        return {module: adapter}
    if has_bias(module.path):
        return {module: adapter, bias_of(module): Adapter(*bias, alpha)}
    if bias[0] != kind:  # else it only scales a bias, which is not there
        raise InputError("it adds to the bias, which this layer does not have")
    return {module: adapter}


def number(tensor: Tensor | None, what: str) -> float | None:
    """The one number that a tensor holds. Raises `InputError`, naming it `what`, for a tensor of several."""
    if tensor is None:
        return None
    if tensor.numel() != 1:
        raise InputError(f"{what} is {tuple(tensor.shape)}, not one number")
    return float(tensor.item())


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


def said(keys: Iterable[str], most: int = 5) -> str:
    """Some keys in words: the first few, and how many more there are."""
    keys = sorted(keys)
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
