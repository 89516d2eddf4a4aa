"""A DoRA as a plain LoRA, for programs that read DoRA otherwise than it is defined.

ComfyUI divides the magnitudes m by the norms of W where the paper (arXiv:2402.09353, eq. 5) has those of W + delta:
it draws with m (W + delta) / ||W||: a few per cent off for a faint adapter, far more for a strong one. A plain
LoRA is W + up @ down everywhere. It is of higher rank than the DoRA, and even so an approximation, whose error is told.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import InputError
from .fuse import OnModule, quiet
from .kinds import kinds_beside
from .lora import Lora
from .low_rank import Keep
from .tools import resize

TIMES = 4  # as high a rank as the DoRA's


def has_dora(lora: Lora) -> bool:
    """Whether any module has DoRA."""
    return any(kind.beside in adapter.tensors for adapter in lora for kind in kinds_beside())


def without_dora(lora: Lora, base: Any, rank: int | None = None, on_module: OnModule = quiet) -> Lora:
    """Make a LoRA without DoRA that does the same to a base model, as nearly as its rank allows.

    Args:
        lora: a LoRA with DoRA on some modules; the others are kept as they are.
        base: the base model that it was trained on, as in `resize`.
        rank: of the modules that had DoRA; None is `TIMES` their highest.
        on_module: called with (modules done, all such modules, the module just done).

    Returns:
        The LoRA; `errors` has the relative error of each module that had DoRA.

    Raises:
        InputError: there is no DoRA in it, or it does not fit the base.
    """
    beside = {kind.beside for kind in kinds_beside()}
    with_dora = {module: adapter for module, adapter in lora.adapters.items() if beside & adapter.tensors.keys()}
    if not with_dora:
        raise InputError("there is no DoRA in it")
    rank = rank or TIMES * max(1, *(adapter.rank for adapter in with_dora.values()))
    made = resize(replace(lora, adapters=with_dora), base=base, keep=Keep(rank=rank), on_module=on_module)
    return replace(lora, adapters={**lora.adapters, **made.adapters}, errors=made.errors)


def told(lora: Lora, name: str) -> str:
    """A sentence on a file that `without_dora` made.

    Args:
        lora: what it made.
        name: the file's name.
    """
    worst = max(lora.errors, key=lambda module: lora.errors[module])
    return (
        f"{name} is for ComfyUI, which computes DoRA otherwise: a plain LoRA of rank {lora.adapters[worst].rank} whose "
        f"change of a module differs by at most {lora.errors[worst]:.2g} of its norm (in {worst})"
    )
