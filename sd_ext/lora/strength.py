"""`Strength`: how strongly a LoRA acts, apart for U-Net and text encoders and for each block. Does not import torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ..errors import InputError
from .blocks import block_of, block_weights, check_blocks, weight_of

if TYPE_CHECKING:
    from .adapter import Adapter, ModuleName
    from .lora import Lora

SHOWN = 6  # names of blocks in a message


@dataclass(frozen=True)
class Strength:
    """How strongly a LoRA acts: s in W + s * (W' - W), where W' is the weight at full strength.

    Args:
        unet: in the U-Net.
        text: in the text encoders; None is as in the U-Net.
        blocks: what each block's strength is multiplied by, as `sd_ext.lora.blocks` reads it: "1,0,0.5,..." or the
            name of a preset; "" for 1 everywhere.

    Raises:
        InputError: a number is not finite, or `blocks` cannot be read.
    """

    unet: float = 1.0
    text: float | None = None
    blocks: str = ""

    def __post_init__(self) -> None:
        given = [self.unet] if self.text is None else [self.unet, self.text]
        if not all(isinstance(each, (int, float)) and math.isfinite(each) for each in given):
            raise InputError(f"strengths {given} cannot work; give one or two finite numbers")
        if self.blocks:
            check_blocks(self.blocks)

    def of_part(self, part: str) -> float:
        """The strength in a part of the pipeline, before block weights."""
        return float(self.unet if part == "unet" or self.text is None else self.text)


AnyStrength = float | Strength


def by_module(lora: Lora, strength: AnyStrength) -> Callable[[ModuleName], float]:
    """A function that tells a LoRA's strength in each module.

    Raises:
        InputError: the block weights are for another model.
    """
    if not isinstance(strength, Strength):
        number = float(strength)
        return lambda module: number
    if not strength.blocks:
        return lambda module: strength.of_part(module.part)
    weights = block_weights(strength.blocks, family_of(lora))

    def of(module: ModuleName) -> float:
        weight = weight_of(weights, module)
        return strength.of_part(module.part) * (1.0 if weight is None else weight)

    return of


def family_of(lora: Lora) -> str | None:
    """The family that a LoRA is for, as stated or as its modules tell; None if neither."""
    from .formats.kohya import base_of

    try:
        return base_of(lora)
    except InputError:
        return None


def unnamed(lora: Lora, strength: AnyStrength) -> str:
    """A sentence on the modules whose blocks the block weights do not name, which keep their strength; "" if none."""
    if not isinstance(strength, Strength) or not strength.blocks:
        return ""
    weights = block_weights(strength.blocks, family_of(lora))
    others = [module for module in lora.adapters if weight_of(weights, module) is None]
    if not others:
        return ""
    names = sorted({block_of(module) or str(module) for module in others})
    more = ", …" if len(names) > SHOWN else ""
    return (
        f"{len(weights)} block weights do not name the blocks of {len(others)} of its {len(lora)} modules, which keep "
        f"their strength: {', '.join(names[:SHOWN])}{more}"
    )


class Weighed(NamedTuple):
    """A LoRA and its strength in each module that it acts on: not in those whose block has weight 0."""

    lora: Lora
    strengths: dict[ModuleName, float]


def weighed(loras: Iterable[tuple[Lora, AnyStrength]]) -> list[Weighed]:
    """Find out how strongly LoRAs act in each module.

    Raises:
        InputError: block weights are for another model.
    """
    made = []
    for lora, strength in loras:
        of = by_module(lora, strength)
        blocked = isinstance(strength, Strength) and bool(strength.blocks)
        made.append(Weighed(lora, {module: of(module) for module in lora.adapters if of(module) or not blocked}))
    return made


def acting(loras: Iterable[Weighed]) -> Iterator[tuple[ModuleName, Adapter]]:
    """Yield (module, adapter) for every adapter that acts."""
    for lora, strengths in loras:
        yield from ((module, lora.adapters[module]) for module in strengths)
