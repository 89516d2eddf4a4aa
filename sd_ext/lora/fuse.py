"""Adding LoRAs to weights: for a while (`apply_lora`), or for good, in memory or into a new folder (`merge_into`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import whole
from ..errors import InputError
from ..models.folder import INDEX
from ..models.model import Stored
from .adapter import ModuleName
from .lora import Lora
from .weights import BaseWeights, ModelWeights, StoredWeights, check_fit, open_base, pairs

Loras = Sequence[tuple[Lora, float]]
OnModule = Callable[[int, int, ModuleName], object]


def quiet(done: int, total: int, module: ModuleName) -> None:
    """The default of `on_module`: progress is not shown."""


class Applied:
    """LoRAs that are in a model's weights. `undo()`, or leaving a `with` block, restores the weights bit by bit."""

    def __init__(self, base: ModelWeights, originals: dict[ModuleName, Tensor]):
        self._base, self._originals = base, originals

    def undo(self) -> None:
        """Put the original weights back. A second time does nothing."""
        with torch.no_grad():
            while self._originals:
                module, weight = self._originals.popitem()
                self._base.modules[module].weight.copy_(weight)

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def fused(
    base: BaseWeights, loras: Loras, modules: Sequence[ModuleName], on_module: OnModule = quiet
) -> Iterator[tuple[ModuleName, Tensor, Tensor]]:
    """The modules with their weights before and after, in the weights' type; all LoRAs see the same base.

    Raises:
        InputError: a new weight that is not finite; names the module.
    """
    for i, module in enumerate(modules, 1):
        weight = base.weight(module)
        after = weight.float()
        for lora, strength in loras:
            if module in lora.adapters:
                after = after + strength * lora.delta(module, weight)
        after = after.to(weight.dtype)
        if not after.isfinite().all():
            raise InputError(f"{module}: the sum does not fit {weight.dtype}; choose a smaller strength")
        yield module, weight, after
        on_module(i, len(modules), module)


def changed_modules(base: BaseWeights, loras: Loras) -> list[ModuleName]:
    """The modules that LoRAs change. Raises `InputError` for one that the base lacks or that does not fit."""
    check_fit(base.shapes(), pairs(loras))
    return sorted({module for module, _ in pairs(loras)})


def apply_lora(models: Any, lora: Lora, strength: float = 1.0) -> Applied:
    """Add a LoRA to the weights of models in memory; `undo()` of what is returned takes it out again, exactly.

    Args:
        models: a pipeline, or models by part: `{"unet": model, ...}`.
        lora: what to add.
        strength: W + strength * (W' - W), for DoRA too.

    Raises:
        InputError: a module that the base lacks or that does not fit; nothing is changed then.
    """
    return apply_loras(models, [(lora, strength)])


def apply_loras(models: Any, loras: Loras, on_module: OnModule = quiet) -> Applied:
    """Add several LoRAs, each with a strength; all see the original weights. See `apply_lora`."""
    base = ModelWeights(models)
    modules = changed_modules(base, loras)
    applied = Applied(base, {})
    try:
        with torch.no_grad():
            for module, weight, after in fused(base, loras, modules, on_module):
                applied._originals[module] = weight.clone()
                weight.copy_(after)
    except BaseException:
        applied.undo()
        raise
    return applied


def merge_into(
    target: Any, loras: Loras, out: str | Path | None = None, on_module: OnModule = quiet, overwrite: bool = False
) -> None:
    """Add LoRAs to a base for good.

    Args:
        target: a pipeline or models by part, changed in place; or a model on disk (a pipeline folder, Hub id, ...; see
            `sd_ext.models.find_model`), copied to `out`.
        loras: with strengths. All see the original base, in any order.
        out: the new folder. It appears whole, with the weights' types and files as in `target`.
        on_module: told (done, total, module).
        overwrite: replace a pipeline folder that is at `out`.

    Raises:
        InputError: a module that the base lacks or that does not fit, or `out` exists; nothing is changed then.
    """
    base = open_base(target)
    if not isinstance(base, StoredWeights):
        apply_loras(target, loras, on_module)
        return
    if out is None:
        raise InputError("a model on disk is merged into a new folder; say where with out")
    _merge_stored(base, loras, Path(out).expanduser(), on_module, overwrite)


def _merge_stored(base: StoredWeights, loras: Loras, out: Path, on_module: OnModule, overwrite: bool) -> None:
    whole.recovered(out)
    replaces = overwrite and (out / INDEX).is_file()
    if out.exists() and not replaces:
        raise InputError(f"{out} exists; choose another folder")
    base.model.check_apart(out)
    modules, done = changed_modules(base, loras), 0

    def change(stored: Stored) -> dict[tuple[str, str], Tensor]:
        """The new weights of one file's modules."""
        nonlocal done
        inside = [module for module in modules if base.places[module] in stored]
        after = fused(base, loras, inside, lambda i, _, module: on_module(done + i, len(modules), module))
        made = {base.places[module]: weight for module, _, weight in after}
        done += len(inside)
        return made

    with whole.folder(out, overwrite=replaces) as new:
        base.model.write_changed(new, base.parts, change)
