"""Which programs read a LoRA file, and what each makes of it.

These are facts of AUTOMATIC1111 1.10, ComfyUI and Diffusers 0.42.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from .kinds import kinds_beside
from .lora import Lora

KOHYA = "lora_unet_", "lora_te_", "lora_te1_", "lora_te2_"  # how names of modules begin in kohya's files
OFT = "oft_unet_"  # in those of its OFT
DIFFUSERS = "unet", "text_encoder", "text_encoder_2"  # and, before the first dot, in Diffusers'
A1111 = frozenset({"lora", "loha", "lokr", "ia3", "glora", "oft", "diff", "dora", "sparse"})
COMFYUI = frozenset({"lora", "loha", "lokr", "glora", "oft", "diff", "set", "dora"})
"""Kinds that these know, and tensors beside them."""
BUNDLED = "bundle_emb"
TO_KOHYA = "`sd-ext convert lora IN OUT --to kohya` makes a file that it reads"


class Reader(NamedTuple):
    """A program, and how it reads the file: "yes", or what it leaves out or refuses."""

    program: str
    how: str


def readers_of(lora: Lora, keys: Iterable[str]) -> tuple[Reader, ...]:
    """What reads a file.

    Args:
        lora: what is in it.
        keys: the names of its tensors.
    """
    keys = list(keys)
    names = {key.partition(".")[0] for key in keys} - {BUNDLED}
    names_of = _Names(
        kohya=all(name.startswith(KOHYA) for name in names),
        flat=all(name.startswith((*KOHYA, OFT, "lycoris_")) for name in names),
        oft=any(name.startswith(OFT) for name in names),
        dotted=names <= {*DIFFUSERS},
        alphas=any(key.endswith(".alpha") for key in keys),
        biases=any(key.endswith(".lora_B.bias") for key in keys),
    )
    return (
        Reader("A1111", _a1111(lora, names_of)),
        Reader("ComfyUI", _comfyui(lora, names_of)),
        Reader("Diffusers", _diffusers(lora, names_of)),
    )


class _Names(NamedTuple):
    """How a file's tensors are called.

    Args:
        kohya: all as in kohya's files.
        flat: all as there or as in LyCORIS's.
        oft: some as in kohya's files of OFT.
        dotted: all as in Diffusers' files.
        alphas: whether there are strengths among the tensors.
        biases: whether there are biases as peft calls them.
    """

    kohya: bool
    flat: bool
    oft: bool
    dotted: bool
    alphas: bool
    biases: bool


def _dora(lora: Lora) -> bool:
    return any("dora" in adapter.tensors for adapter in lora)


def _without(lora: Lora, known: frozenset[str]) -> str:
    """A sentence on what a program leaves out that knows these kinds; "" if it knows all."""
    beside = {kind.beside for kind in kinds_beside()}
    found = {adapter.kind for adapter in lora} | {name for a in lora for name in beside & a.tensors.keys()}
    others = sorted(found - known)
    if not others:
        return ""
    if found - {"dora", "sparse"} <= {*others}:
        return f"no, since it does not know {', '.join(others)}"
    return f"without its {', '.join(others)}, which it does not know"


def _a1111(lora: Lora, names: _Names) -> str:
    without = _without(lora, A1111)
    if names.flat or without.startswith("no"):
        return without or "yes"
    return f"no; {TO_KOHYA}"


def _comfyui(lora: Lora, names: _Names) -> str:
    if without := _without(lora, COMFYUI):
        return without
    if names.oft:
        return f"no; {TO_KOHYA}"
    if _dora(lora):
        return "otherwise than it was trained: DoRA is divided by the norm of the base's weight alone; see docs/lora.md"
    if not names.alphas and any(adapter.scale != 1 for adapter in lora if adapter.rules.has_alpha):
        return "at another strength: it does not look for alphas in the header; convert it to kohya's format"
    return "yes"


def _diffusers(lora: Lora, names: _Names) -> str:
    read = [
        adapter for module, adapter in lora.adapters.items() if not (names.biases and module.path.endswith(".bias"))
    ]
    others = sorted({adapter.rules.name for adapter in read if not adapter.rules.in_diffusers})
    if others:
        return f"no, since it does not know {', '.join(others)}; sd_ext.use_lora does"
    if lora.bundled:
        return "no, because of the words bundled with it; convert it with --to diffusers, which puts them beside"
    if not names.kohya and not (names.dotted and not names.alphas):
        return "no; `sd-ext convert lora IN OUT --to diffusers` makes a file that it reads"
    if names.dotted:
        return "yes"
    if _dora(lora):
        return "without DoRA's vectors, which it drops; convert it with --to diffusers"
    if any(_lacks_out_proj(lora, part) for part in lora.parts):
        return "without the text encoder's attention, or not at all; convert it with --to diffusers"
    mixed = [p for p in lora.parts if len({adapter.alpha for adapter in lora.of_part(p).values()}) > 1]
    if mixed:
        return f"with wrong strengths in {', '.join(mixed)}, whose alphas differ; convert it"
    return "yes"


def _lacks_out_proj(lora: Lora, part: str) -> bool:
    inside = [path for path in lora.of_part(part) if ".self_attn." in path]
    return bool(inside) and not any(path.endswith(".out_proj") for path in inside)
