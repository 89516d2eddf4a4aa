"""Block weights: a strength apart for each block of the U-Net, as other programs number the blocks.

The blocks are those of the original layout, as LoRA Block Weight and merge-block-weight name them: BASE is the text
encoders, IN00 to IN11 `input_blocks`, MID `middle_block`, OUT00 to OUT11 `output_blocks`; SDXL has nine on each side.
Which blocks a list of weights is for follows from how many there are:

    12   SDXL, blocks with attention            BASE  IN04 IN05 IN07 IN08  MID  OUT00 ... OUT05
    17   SD 1.x and 2.x, blocks with attention  BASE  IN01 IN02 IN04 IN05 IN07 IN08  MID  OUT03 ... OUT11
    20   SDXL, all blocks                       BASE  IN00 ... IN08  MID  OUT00 ... OUT08
    26   SD 1.x and 2.x, all blocks             BASE  IN00 ... IN11  MID  OUT00 ... OUT11

What lies before the blocks (`time_embed`, `label_emb`) counts as IN00, what lies behind them (`out`) as the last OUT.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ..errors import InputError, UnknownNameError

if TYPE_CHECKING:
    from .adapter import ModuleName

BASE, MID = "BASE", "MID"
LAYERS = 3  # blocks of the original layout at each level of the U-Net
MOST = 100.0  # a weight, up or down


def _listed(ins: Iterable[int], outs: Iterable[int]) -> tuple[str, ...]:
    return BASE, *(f"IN{n:02}" for n in ins), MID, *(f"OUT{n:02}" for n in outs)


CONVENTIONS: dict[int, tuple[str, ...]] = {
    12: _listed((4, 5, 7, 8), range(6)),
    17: _listed((1, 2, 4, 5, 7, 8), range(3, 12)),
    20: _listed(range(9), range(9)),
    26: _listed(range(12), range(12)),
}
"""Number of weights -> the blocks that they are for, in order."""

LONG = {"sd15": 26, "sd21": 26, "sdxl": 20}
"""Family -> how many weights name all of its blocks."""
SHORT = {26: 17, 20: 12}
"""That number -> how many name those with attention."""

STRETCHES: dict[str, dict[int, range]] = {
    "INS": {26: range(4), 20: range(6)},
    "IND": {26: range(5, 12), 20: range(6, 9)},
    "INALL": {26: range(12), 20: range(9)},
    "OUTD": {26: range(7), 20: range(3)},
    "OUTS": {26: range(7, 12), 20: range(3, 9)},
    "OUTALL": {26: range(12), 20: range(9)},
}
"""Shallow and deep blocks of each side: for SD 1.x and 2.x those of LoRA Block Weight, for SDXL those of the lowest
resolution against all others."""

PRESETS = {
    "NONE": "", "ALL": "BASE INALL MID OUTALL", "INS": "BASE INS", "IND": "BASE IND", "INALL": "BASE INALL",
    "MIDD": "BASE IND MID OUTD", "OUTD": "BASE OUTD", "OUTS": "BASE OUTS", "OUTALL": "BASE OUTALL",
}  # fmt: skip
"""Names of sets of blocks that have weight 1, all others 0, as LoRA Block Weight calls them."""


def check_blocks(text: str) -> None:
    """Raise `InputError` unless a text is a list of as many weights as a convention has, or a preset's name."""
    _numbers(text)


def block_weights(text: str, family: str | None) -> dict[str, float]:
    """The weight of each block that a text names.

    Args:
        text: weights with commas between them, "1,0,0,0.5,...", or one of `PRESETS`.
        family: "sd15", "sd21", "sdxl", ...; None if it is not known.

    Returns:
        Block ("BASE", "IN04", "MID", "OUT11", ...) -> weight.

    Raises:
        InputError: the text cannot be read, its number of weights is another family's, or a preset is named and the
            family is not known.
    """
    numbers, long = _numbers(text), LONG.get(family or "")
    if numbers is None:
        if long is None:
            raise InputError(f"which blocks {text} names depends on the model, which is not known; give numbers")
        within = set(_preset(text.strip().upper(), long))
        return {name: float(name in within) for name in CONVENTIONS[long]}
    if long is not None and len(numbers) not in (long, SHORT[long]):
        raise InputError(f"{len(numbers)} block weights are not for this model; give {SHORT[long]} or {long}")
    return dict(zip(CONVENTIONS[len(numbers)], numbers, strict=True))


def _numbers(text: str) -> list[float] | None:
    """The weights that a text lists; None for a preset's name."""
    pieces = [piece.strip() for piece in text.split(",")]
    if len(pieces) == 1 and re.fullmatch(r"[A-Za-z]\w*", pieces[0]):
        if pieces[0].upper() not in PRESETS:
            raise UnknownNameError("preset of block weights", pieces[0], PRESETS)
        return None
    try:
        numbers = [float(piece) for piece in pieces]
    except ValueError:
        numbers = []
    if len(numbers) not in CONVENTIONS:
        counts = ", ".join(map(str, CONVENTIONS))
        raise InputError(f"block weights {text!r} cannot be read; give {counts} numbers or one of {', '.join(PRESETS)}")
    if wrong := [number for number in numbers if not (math.isfinite(number) and abs(number) <= MOST)]:
        raise InputError(f"a block weight of {wrong[0]:g} cannot work; choose -{MOST:g} to {MOST:g}")
    return numbers


def _preset(name: str, long: int) -> list[str]:
    within = []
    for word in PRESETS[name].split():
        side = "IN" if word.startswith("IN") else "OUT"
        within += [f"{side}{n:02}" for n in STRETCHES[word][long]] if word in STRETCHES else [word]
    return within


def block_of(module: ModuleName) -> str:
    """The block that a module belongs to, such as "IN04"; "" for one of a U-Net with other blocks."""
    if module.part != "unet":
        return BASE
    if module.path.startswith("mid_block."):
        return MID
    found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.", module.path)
    if found:
        level, what, layer = int(found[2]), found[3], int(found[4])
        if what.endswith("samplers"):
            layer = LAYERS - 1
        return f"IN{1 + LAYERS * level + layer:02}" if found[1] == "down" else f"OUT{LAYERS * level + layer:02}"
    if module.path.startswith(("conv_in", "time_embedding.", "add_embedding.")):
        return "IN00"
    return "OUT" if module.path.startswith(("conv_out", "conv_norm_out")) else ""


def weight_of(weights: Mapping[str, float], module: ModuleName) -> float | None:
    """The weight of a module's block; None if the list of weights does not name its block.

    Args:
        weights: see `block_weights`.
        module: the module.
    """
    block = block_of(module)
    if block == "OUT":  # behind the last block
        block = next(name for name in reversed(list(weights)) if name.startswith("OUT"))
        return weights[block] if len(weights) in LONG.values() else None
    return weights.get(block)
