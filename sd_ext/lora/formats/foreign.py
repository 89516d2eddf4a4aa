"""Files that are no LoRA for Stable Diffusion: say in one sentence what they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...errors import InputError, UnknownNameError
from ...models.original.families import KNOWN
from ...models.original.told import SIGNS, what_is
from .keys import split
from .names import flat, look_up

SHARED = "weight", "alpha", "scalar", "bias"  # what the keys of other files end with too
OF_OTHERS = (
    ("a video model (Wan or another)", ("diffusion_model.blocks.", "lora_unet_blocks_", "transformer.blocks.")),
    ("a text model", ("model.layers.", "base_model.model.model.layers.", "language_model.")),
    ("a model with a T5 text encoder (Stable Diffusion 3 or FLUX)", ("text_encoders.t5xxl.", "lora_te3_",
                                                                     "text_encoder_3.")),
)  # fmt: skip
"""What a LoRA is for -> how its keys begin; besides what tells checkpoints (`sd_ext.models.original.told`)."""


def refuse_foreign(keys: Iterable[str], header: Mapping[str, str]) -> None:
    """Raise `InputError`, saying what it is, for a file that holds no adapter of any kind.

    Args:
        keys: the names of its tensors.
        header: its header.
    """
    keys = list(keys)
    if any(_is_adapters(key) for key in keys):
        return
    if any(key.startswith("bundle_emb.") for key in keys):
        raise InputError("there is no LoRA in it, only words (bundle_emb); give it as an embedding")
    raise InputError(f"there is no LoRA in it; it is {what_is(dict.fromkeys(keys), header)[1]}")


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
    names = ["_" + flat(key) for key in keys if _no_module(key)]
    inside = [(sign.title, ["_" + flat(word) for word in sign.words]) for sign in SIGNS if sign.kind != "lora"]
    title = next((title for title, words in inside if any(word in name for name in names for word in words)), None)
    for other, words in OF_OTHERS:
        if title is None and any(name.startswith("_" + flat(word)) for name in names for word in words):
            title = other
    return InputError(f"it is a LoRA for {title}, and only those for {KNOWN} are read") if title else None


def _no_module(key: str) -> bool:
    try:
        return look_up(split(key)[0])[0] is None
    except UnknownNameError:
        return False
