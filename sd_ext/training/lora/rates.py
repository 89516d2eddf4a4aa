"""Learning rates by block of the U-Net, as shares of the run's learning rate.

    up_blocks=0.5,up_blocks.1=1,mid_block=0     beginnings of module names; the longest that fits counts
    1,0,0,0,1,1,...                             12, 17, 20 or 26 numbers, one for each block
    OUTD                                        a set of blocks: 1 in it, 0 elsewhere

Numbers and sets are those of `sd_ext.lora.blocks`. A share of 0 means that the block gets no adapters.
Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from sd_ext.errors import InputError
from sd_ext.lora.blocks import BASE, block_weights, check_blocks, weight_of


def named(texts: Sequence[str]) -> dict[str, float] | None:
    """The shares by the beginning of a module's name; None if the texts are numbers or the name of a set.

    Raises:
        InputError: a text is not NAME=SHARE, or a share is no number from 0 on.
    """
    if not any("=" in text for text in texts):
        return None
    found: dict[str, float] = {}
    for text in texts:
        name, _, number = (part.strip() for part in text.partition("="))
        try:
            found[name.removeprefix("unet.")] = float(number)
        except ValueError:
            number = "nan"
        if not name or not math.isfinite(float(number)) or float(number) < 0:
            raise InputError(f"block_rates: {text!r} is not NAME=SHARE, such as up_blocks=0.5; shares are 0 or more")
    return found


def check_block_rates(texts: Sequence[str]) -> None:
    """Raise `InputError` if the setting `block_rates` cannot be read, or a share is negative."""
    if texts and named(texts) is None:
        check_blocks(",".join(texts))
    if wrong := [share for share in shares(texts) if share < 0]:
        raise InputError(f"block_rates: a learning rate cannot be {wrong[0]:g} times the run's; shares are 0 or more")


def shares(texts: Sequence[str]) -> list[float]:
    """All shares that occur: those that are written, and 1 for what is not named."""
    if not texts:
        return [1.0]
    if (known := named(texts)) is not None:
        return [*known.values(), 1.0]
    if len(texts) == 1:  # a set
        return [0.0, 1.0]
    return [float(text) for text in texts]


def block_rates(texts: Sequence[str], family: str, paths: Iterable[str]) -> Callable[[str], float]:
    """The share of each module of the U-Net.

    Args:
        texts: the setting `block_rates`.
        family: the model's family, "sd15", "sd21" or "sdxl".
        paths: the names of the modules that could get adapters.

    Returns:
        A function from a module's name to its share; 1 where nothing is said.

    Raises:
        InputError: a name is the beginning of no module, or the numbers are for another family.
    """
    from sd_ext.lora.adapter import ModuleName

    if not texts:
        return lambda path: 1.0
    known = named(texts)
    if known is None:
        weights = block_weights(",".join(texts), family)

        def numbered(path: str) -> float:
            found = weight_of(weights, ModuleName("unet", path))
            return 1.0 if found is None else found

        return numbered
    there = list(paths)
    for name in known:
        if not any(begins(path, name) for path in there):
            raise InputError(f"block_rates: no module with an adapter is in {name}")

    def by_name(path: str) -> float:
        fitting = [name for name in known if begins(path, name)]
        return known[max(fitting, key=len)] if fitting else 1.0

    return by_name


def begins(path: str, name: str) -> bool:
    """Whether a module's name lies in the block of this name."""
    return f"{path}.".startswith(f"{name.rstrip('.')}.")


def text_share(texts: Sequence[str], family: str) -> float:
    """The share of the text encoders: that of BASE, if numbers or a set are given; else 1."""
    if not texts or named(texts) is not None:
        return 1.0
    return block_weights(",".join(texts), family).get(BASE, 1.0)
