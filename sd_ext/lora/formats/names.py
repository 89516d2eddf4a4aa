"""Convert names of modules between formats: Diffusers' dotted paths, old and new, and kohya's with underscores.

kohya replaces the dots of a path by underscores. To read such a name one must know the words that contain underscores
themselves; they are listed here. Other words occur in no Stable Diffusion U-Net or CLIP text encoder.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ...errors import InputError, UnknownNameError
from ..adapter import ModuleName
from . import sdxl

_UNET = """
down_blocks mid_block up_blocks resnets attentions downsamplers upsamplers transformer_blocks attn1 attn2 ff net proj
to_q to_k to_v to_out proj_in proj_out conv conv1 conv2 conv_in conv_out conv_shortcut time_emb_proj time_embedding
add_embedding class_embedding linear_1 linear_2"""
_TEXT = "encoder layers self_attn q_proj k_proj v_proj out_proj mlp fc1 fc2 text_projection"
UNET_WORDS, TEXT_WORDS = frozenset(_UNET.split()), frozenset(_TEXT.split())
OLD_TEXT_WORDS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
PREFIXES = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}


def words_of(part: str) -> frozenset[str]:
    """The words, besides numbers, that occur in the paths of this part's modules."""
    return UNET_WORDS if part == "unet" else TEXT_WORDS


def unflatten(name: str, words: Iterable[str]) -> str:
    """Convert `down_blocks_0_attentions_1` to `down_blocks.0.attentions.1`.

    Args:
        name: the name with underscores.
        words: the words that it may consist of, besides numbers.

    Raises:
        UnknownNameError: a piece of the name is neither a number nor one of `words`.
    """
    known = {tuple(word.split("_")) for word in words}
    longest = max(map(len, known))
    pieces, path = name.split("_"), []
    while pieces:
        fits = (n for n in range(longest, 0, -1) if tuple(pieces[:n]) in known)
        length = 1 if pieces[0].isdigit() else next(fits, 0)
        if not length:
            raise UnknownNameError(f"stretch of the module name {name!r}", "_".join(pieces[:2]), words)
        path.append("_".join(pieces[:length]))
        del pieces[:length]
    return ".".join(path)


def check_path(part: str, path: str) -> None:
    """Raise `UnknownNameError` if a dotted path contains a word that occurs in no module of this part."""
    for word in path.split("."):
        if not word.isdigit() and word not in words_of(part):
            raise UnknownNameError(f"word in the module name '{part}.{path}'", word, words_of(part))


def from_kohya(name: str) -> ModuleName:
    """The module of a name in kohya's format, such as `lora_te1_text_model_encoder_layers_0_mlp_fc1`.

    U-Net names may be Diffusers' or, as for SDXL, the original ones.

    Raises:
        InputError: no such module.
    """
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), None)
    if prefix is None:
        raise UnknownNameError("beginning of a module name", name, PREFIXES)
    part, rest = PREFIXES[prefix], name[len(prefix) :]
    if part != "unet":
        return ModuleName(part, unflatten(rest.removeprefix("text_model_"), TEXT_WORDS))
    if rest.startswith(sdxl.BEGINNINGS):
        return ModuleName(part, sdxl.from_original(unflatten(rest, sdxl.WORDS)))
    return ModuleName(part, unflatten(rest, UNET_WORDS))


def to_kohya(module: ModuleName, is_sdxl: bool) -> str:
    """The name of a module in kohya's format.

    Args:
        module: the module.
        is_sdxl: whether it is SDXL's: then U-Net modules have their original names and text encoders a number.

    Raises:
        InputError: SDXL's original U-Net has no such module.
    """
    if module.part == "unet":
        path = sdxl.to_original(module.path) if is_sdxl else module.path
        return "lora_unet_" + path.replace(".", "_")
    if module.part == "text_encoder_2" and not is_sdxl:
        raise InputError(f"{module}: only SDXL has a second text encoder")
    number = {"text_encoder": "1", "text_encoder_2": "2"}[module.part] if is_sdxl else ""
    return f"lora_te{number}_{to_text_model(module.path).replace('.', '_')}"


def to_text_model(path: str) -> str:
    """A text encoder's path as files have it: with the prefix `text_model.`, except for the text projection."""
    return path if path.startswith("text_projection") else f"text_model.{path}"


def from_dotted(path: str, part: str | None = None) -> ModuleName:
    """The module of a dotted name, in the current or the old naming (attention processors) of Diffusers, or in peft's.

    Args:
        path: the name, which may begin with the part.
        part: the part if the name does not say; None guesses it from the path.

    Raises:
        InputError: no such module.
    """
    path = path.removeprefix("base_model.model.").replace(".processor", "")
    named = re.match(r"(unet|text_encoder_2|text_encoder)\.(?!layers\.)(.+)", path)
    if named:
        part, path = named[1], named[2]
    part = part or ("text_encoder" if path.startswith(("text_model.", "encoder.layers.", "text_proj")) else "unet")
    if part == "unet":
        path = re.sub(r"\.to_out$", ".to_out.0", path)
    else:
        path = path.removeprefix("text_model.")
        path = re.sub(r"(?<=self_attn\.)to_\w+$", lambda m: OLD_TEXT_WORDS.get(m[0], m[0]), path)
    check_path(part, path)
    return ModuleName(part, path)
