"""From tensors under a format's keys to adapters; what the formats have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...errors import InputError, UnknownNameError
from ..adapter import Adapter, ModuleName

# Factors as every format spells LoHa and LoKr.
PRODUCTS = {
    **{f"hada_{name}": ("loha", name) for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f"lokr_{name}": ("lokr", name) for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
}
KOHYA_FIELDS = {
    "lora_down.weight": ("lora", "down"), "lora_up.weight": ("lora", "up"), "lora_mid.weight": ("lora", "mid"),
    "alpha": ("", "alpha"), "dora_scale": ("", "dora"), **PRODUCTS,
}  # fmt: skip
DOTTED_FIELDS = {
    "lora_A.weight": ("lora", "down"), "lora_B.weight": ("lora", "up"),
    "lora.down.weight": ("lora", "down"), "lora.up.weight": ("lora", "up"),
    "lora_linear_layer.down.weight": ("lora", "down"), "lora_linear_layer.up.weight": ("lora", "up"),
    "lora_down.weight": ("lora", "down"), "lora_up.weight": ("lora", "up"),
    "alpha": ("", "alpha"), "dora_scale": ("", "dora"),
    "lora_magnitude_vector": ("", "magnitude"), "lora_magnitude_vector.weight": ("", "magnitude"), **PRODUCTS,
}  # fmt: skip
Fields = dict[str, Tensor]
Alphas = Callable[[ModuleName, int], "float | None"]


def split_kohya(key: str) -> tuple[str, tuple[str, str]]:
    """`lora_unet_conv_in.alpha` as its module's name and the field. Raises `UnknownNameError`."""
    name, _, field = key.partition(".")
    if field not in KOHYA_FIELDS:
        raise UnknownNameError(f"kind of tensor in {key!r}", field, KOHYA_FIELDS)
    return name, KOHYA_FIELDS[field]


def split_dotted(key: str) -> tuple[str, tuple[str, str]]:
    """`unet.conv_in.lora_A.weight` as its module's path and the field. Raises `UnknownNameError`."""
    plain = re.sub(r"\.(lora_[AB])\.\w+\.weight$", r".\1.weight", key)  # peft's own state: lora_A.default.weight
    if old := re.fullmatch(r"(.+\.to_(?:q|k|v|out))_lora\.(down|up)\.weight", plain):
        return old[1], ("lora", old[2])
    for field, meaning in DOTTED_FIELDS.items():
        if plain.endswith(f".{field}"):
            return plain[: -len(field) - 1], meaning
    raise UnknownNameError(f"kind of tensor in {key!r}", ".".join(key.split(".")[-2:]), DOTTED_FIELDS)


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
    if "mid" in fields:
        fields["down"] = _whole_down(fields)
    if "magnitude" in fields:
        fields["dora"] = column(fields.pop("magnitude"), fields)
    made = Adapter(kind, fields, 1.0)
    alpha = float(own.item()) if own is not None else alpha_of(module, made.rank)
    return Adapter(kind, fields, float(made.rank or 1) if alpha is None else float(alpha))


def _whole_down(fields: Fields) -> Tensor:
    """LyCORIS's convolution in three factors, down (r, in, 1, 1), mid (r, r, k, k) and up, as LoRA's two."""
    mid, down = fields.pop("mid"), fields.get("down")
    if down is None or mid.ndim != 4 or mid.shape[1] != down.shape[0]:
        raise InputError(f"tensors do not fit together: lora_mid {tuple(mid.shape)}")
    return torch.einsum("rskl,si->rikl", mid.float(), down.flatten(1).float()).to(down.dtype)


def column(magnitude: Tensor, fields: Mapping[str, Tensor]) -> Tensor:
    """peft's DoRA magnitudes, (out,) or for a convolution (1, out, 1, 1), as (out, 1) or (out, 1, 1, 1)."""
    return magnitude.reshape(-1, *[1] * (fields["up"].ndim - 1)) if "up" in fields else magnitude
