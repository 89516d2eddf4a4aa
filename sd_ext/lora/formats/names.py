"""What a module is called in a LoRA file, and which module a name means.

Trainers call the same module by many names:

    lora_unet_input_blocks_4_1_proj_in                       kohya's, SDXL: the original name, flat
    lora_unet_down_blocks_1_attentions_0_proj_in             kohya's, SD 1.x and 2.x: Diffusers' name, flat
    unet.down_blocks.1.attentions.0.proj_in                  Diffusers'
    diffusion_model.input_blocks.4.1.proj_in                 ComfyUI's
    base_model.model.down_blocks.1.attentions.0.proj_in      peft's
    lycoris_down_blocks_1_attentions_0_proj_in               LyCORIS's

All are a module's name, in one of two layouts, with dots or underscores, after beginnings that say the part or nothing.
The names are those of the models' own lists (`sd_ext.models.original.modules`); a new beginning is a line in
`BEGINNINGS`, a new way to write one module a line in `REWRITTEN`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

from ...errors import InputError, UnknownNameError
from ...models.original.families import Blocks, families
from ...models.original.modules import modules, original_names, text_modules, unet_modules
from ..adapter import ModuleName

ANY = ""
BEGINNINGS = {
    "lora_unet_": "unet", "oft_unet_": "unet", "unet_": "unet",
    "diffusion_model_": "unet", "model_diffusion_model_": "unet",
    "lora_te_": "text_encoder", "lora_te1_": "text_encoder", "lora_te2_": "text_encoder_2",
    "te_": "text_encoder", "te1_": "text_encoder", "te2_": "text_encoder_2",
    "text_encoder_": "text_encoder", "text_encoder_1_": "text_encoder", "text_encoder_2_": "text_encoder_2",
    "text_encoders_": ANY, "clip_l_": "text_encoder", "clip_h_": "text_encoder", "clip_g_": "text_encoder_2",
    "lora_": ANY, "lycoris_": ANY, "text_model_": ANY, "base_model_": ANY, "model_": ANY, "module_": ANY,
    "transformer_": ANY, "_orig_mod_": ANY,
}  # fmt: skip
"""Beginnings of names in files -> the part of the pipeline they say, `ANY` if none. Those of checkpoints are known too
(`beginnings`). Dots are underscores here."""
REWRITTEN = (
    (r"_processor(?=_to_|$)", ""),  # Diffusers' first LoRA layers
    (r"(?<=attn[12])_to_out$", "_to_out_0"),
    (r"(?<=self_attn)_to_out(_0)?$", "_out_proj"),
    (r"(?<=self_attn)_to_([qkv])$", r"_\1_proj"),
)
"""Ways to write the end of a flat name -> the usual one."""
NEAR = 3  # names in a message
WIDEST = Blocks((1, 2, 3, 4), (10, 10, 10, 10), 10, True, 3)
"""Blocks of models of the same make that are of no family: every module that any of them has."""


class Place(NamedTuple):
    """What a name in a file means.

    Args:
        module: the module.
        families: names of the families that have such a module.
        original: whether it is called by its name in the original layout, where that differs from Diffusers'.
    """

    module: ModuleName
    families: frozenset[str]
    original: bool


def flat(name: str) -> str:
    """A name with underscores for dots, written as usual."""
    made = name.replace(".", "_")
    for pattern, usual in REWRITTEN:
        made = re.sub(pattern, usual, made)
    return made


@cache
def index() -> dict[str, tuple[Place, ...]]:
    """Every flat name without a beginning -> what it can mean, a module of each part at most."""
    found: dict[str, dict[ModuleName, tuple[set[str], bool]]] = {}
    for family, module, original in _listed():
        usual = {module.path} if module.part == "unet" else {module.path, to_text_model(module.path)}
        for name in usual | ({original} if original else set()):
            entry = found.setdefault(name.replace(".", "_"), {})
            known, by_original = entry.setdefault(module, (set(), name not in usual))
            known |= {family} if family else set()
            entry[module] = known, by_original
    return {
        name: tuple(Place(module, frozenset(known), original) for module, (known, original) in entry.items())
        for name, entry in found.items()
    }


def _listed() -> Iterator[tuple[str, ModuleName, str | None]]:
    """Yield (family, module, original name) of every module; family "" for models that are of none."""
    for family in families().values():
        for part in ("unet", *family.text):
            originals = original_names(family, part)
            for path, _ in modules(family, part):
                yield family.name, ModuleName(part, path), originals.get(path)
    for path, _ in unet_modules(WIDEST, True):
        yield "", ModuleName("unet", path), None
    layers = max(encoder.layers for family in families().values() for encoder in family.text.values())
    for part in ("text_encoder", "text_encoder_2"):
        yield from (("", ModuleName(part, path), None) for path, _ in text_modules(layers, True))


@cache
def beginnings() -> dict[str, str]:
    """`BEGINNINGS` and those of checkpoints, longest first."""
    made = dict(BEGINNINGS)
    for family in families().values():
        for part, known in family.beginnings.items():
            if part in ("unet", *family.text):
                made |= {beginning.replace(".", "_"): part for beginning in known}
    return dict(sorted(made.items(), key=lambda pair: -len(pair[0])))


def find_module(name: str, part: str | None = None) -> Place:
    """Find the module that a name in a file means.

    Args:
        name: the name, flat or dotted, without what follows the module in a key.
        part: the part if the name does not say it; None means the first that has such a module.

    Raises:
        UnknownNameError: no Stable Diffusion has such a module; the message has near ones.
    """
    place, rest = look_up(name, part)
    if place is None:
        raise _unknown(name, rest)
    return place


def look_up(name: str, part: str | None = None) -> tuple[Place | None, str]:
    """As `find_module`, but None for a name that means nothing; and the name as far as it was not understood."""
    rest, said = flat(name), part
    while True:
        for place in index().get(rest, ()):
            if said in (None, place.module.part):
                return place, rest
        beginning = next((known for known in beginnings() if rest.startswith(known)), None)
        if beginning is None:
            return None, rest
        rest, said = rest[len(beginning) :], beginnings()[beginning] or said


def _unknown(name: str, rest: str) -> InputError:
    """The error for a name that means nothing, with near names written as it is."""
    near = difflib.get_close_matches(rest, [key for key in index() if abs(len(key) - len(rest)) < 8], NEAR, 0.75)
    start = flat(name)[: len(flat(name)) - len(rest)]
    start = "lora_unet_" if start and not beginnings().get(start) else start
    if "." in name:
        start = start and f"{beginnings().get(start) or 'unet'}."
        near = list(dict.fromkeys(index()[key][0].module.path for key in near))
    known = [start + key for key in near] or [key for key in BEGINNINGS if key.startswith(("lora", "unet"))]
    return UnknownNameError("module of Stable Diffusion", name, known)


def to_kohya(module: ModuleName, base: str) -> str:
    """The name of a module in kohya's format.

    Args:
        module: the module.
        base: the family. For SDXL, U-Net modules have their original names and text encoders a number.

    Raises:
        InputError: the family's original U-Net has no such module, or it has only one text encoder.
    """
    numbered = base.startswith("sdxl")
    if module.part == "unet":
        path = _original(base, module.path) if numbered else module.path
        return "lora_unet_" + path.replace(".", "_")
    if module.part == "text_encoder_2" and not numbered:
        raise InputError(f"{module}: only SDXL has a second text encoder")
    number = {"text_encoder": "1", "text_encoder_2": "2"}[module.part] if numbered else ""
    return f"lora_te{number}_{to_text_model(module.path).replace('.', '_')}"


def _original(base: str, path: str) -> str:
    if path not in (names := _originals(base)):
        raise InputError(f"the original U-Net of {families()[base].title} has no module unet.{path}")
    return names[path]


@cache
def _originals(base: str) -> dict[str, str]:
    return original_names(families()[base], "unet")


def to_text_model(path: str) -> str:
    """A text encoder's path as files have it: with the prefix `text_model.`, except for the text projection."""
    return path if path.startswith("text_projection") else f"text_model.{path}"


@cache
def kinds_of_modules(base: str) -> dict[ModuleName, str]:
    """What every module of a family is: "linear", "conv", "norm" or "embedding"."""
    family = families()[base]
    return {ModuleName(part, path): kind for part in ("unet", *family.text) for path, kind in modules(family, part)}
