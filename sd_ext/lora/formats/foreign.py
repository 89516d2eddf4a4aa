"""Files that are no LoRA for Stable Diffusion: say in one sentence what they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...checked import CONTENT
from ...errors import InputError, UnknownNameError
from ...models.original.families import KNOWN
from ...models.original.told import SIGNS, Sign, what_is
from .keys import split
from .names import flat, look_up

SHARED = "weight", "alpha", "scalar", "bias"  # what the keys of other files end with too
OTHERS = (
    *(sign for sign in SIGNS if sign.kind != "lora"),
    Sign("transformer", "a transformer (Stable Diffusion 3, FLUX, PixArt, LTX-Video or another)", (), adapted=(
        "transformer_blocks.", "transformer.transformer_blocks.", "diffusion_model.transformer_blocks.",
        "lora_transformer_", "lora_unet_transformer_blocks_")),
)  # fmt: skip
"""What a LoRA may be for besides; the last is all that the names of many models' modules tell."""


def refuse_foreign(keys: Iterable[str], header: Mapping[str, str]) -> None:
    """Raise `InputError`, saying what it is, for a file that holds no adapter of any kind.

    Args:
        keys: the names of its tensors.
        header: its header.
    """
    keys = list(keys)
    if CONTENT in header:
        raise InputError(
            "it is a file of a training run, such as a checkpoint, and not at the strength of the LoRA; "
            "`sd-ext train export RUN@STEP` writes the LoRA of a checkpoint"
        )
    if any(_is_adapters(key) for key in keys):
        return
    if any(key.startswith("bundle_emb.") for key in keys):
        raise InputError("there is no LoRA in it, only words (bundle_emb); give it as an embedding")
    kind, title, _ = what_is(dict.fromkeys(keys), header)
    if kind == "lora":
        raise InputError(f"it is a LoRA of a kind that is not known here (its first tensor is {min(keys)[:80]})")
    raise InputError(f"there is no LoRA in it; it is {title}")


def _is_adapters(key: str) -> bool:
    if key.rpartition(".")[2] in SHARED and not key.endswith((".on_input", ".set_weight")):
        try:
            _, meaning, _ = split(key)
        except UnknownNameError:
            return False
        return meaning.kind not in ("", "ia3")
    try:
        split(key)
    except UnknownNameError:
        return "lora" in key.lower()
    return True


def for_another(keys: Iterable[str]) -> InputError | None:
    """The error for a LoRA whose modules are of another model; None if nothing tells which."""
    names = [key for key in keys if _no_module(key)]
    title = next((other.title for other in OTHERS if any(_is_of(other, name) for name in names)), None)
    return InputError(f"it is a LoRA for {title}, and only those for {KNOWN} are read") if title else None


def _is_of(other: Sign, name: str) -> bool:
    """Whether a module's name is one of another model's. Of `words`, dots may be underscores."""
    dotted, level = f".{name}", f"_{flat(name)}"
    return name.startswith(other.adapted) or any(f".{w}" in dotted or f"_{flat(w)}" in level for w in other.words)


def _no_module(key: str) -> bool:
    try:
        return look_up(split(key)[0])[0] is None
    except UnknownNameError:
        return False
