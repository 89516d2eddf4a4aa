"""Add LoRAs to weights: temporarily (`apply_lora`), or permanently, in memory or on disk (`merge_into`)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..models.model import Stored
from ..models.written import check_out, write_model
from .adapter import ModuleName
from .formats.words import write_words
from .headers import merged_words
from .lora import Lora
from .strength import AnyStrength, acting, weighed
from .weights import BaseWeights, ModelWeights, StoredWeights, check_loras, check_strengths, open_base

log = logging.getLogger(__name__)

Loras = Sequence[tuple[Lora, AnyStrength]]  # each with its strength
OnModule = Callable[[int, int, ModuleName], object]  # progress: (modules done, all modules, the module just done)


def quiet(done: int, total: int, module: ModuleName) -> None:
    """A progress callback that does nothing."""


class Applied:
    """LoRAs that have been added to a model's weights.

    `undo()`, or leaving a `with` block, restores the original weights exactly.
    """

    def __init__(self, base: ModelWeights, originals: dict[ModuleName, Tensor]):
        self._base, self._originals = base, originals

    def undo(self) -> None:
        """Restore the original weights. Calling it again does nothing."""
        with torch.no_grad():
            while self._originals:
                module, weight = self._originals.popitem()
                self._base.parameters[module].copy_(weight)

    def __enter__(self) -> Applied:
        return self

    def __exit__(self, *_: object) -> None:
        self.undo()


def fused(
    base: BaseWeights, loras: Loras, modules: Sequence[ModuleName], on_module: OnModule = quiet
) -> Iterator[tuple[ModuleName, Tensor, Tensor]]:
    """Compute the weights with LoRAs added, one module at a time.

    Args:
        base: the base model's weights, which every LoRA is computed from.
        loras: the LoRAs with their strengths.
        modules: the modules to compute.
        on_module: progress callback.

    Yields:
        (module, weight before, weight after), both in the base's dtype.

    Raises:
        InputError: a new weight is not finite; the message names the module.
    """
    parts = weighed(loras)
    for i, module in enumerate(modules, 1):
        weight = base.weight(module)
        after = weight.float()
        for lora, strengths in parts:
            if module in strengths:
                after = after + strengths[module] * lora.delta(module, weight)
        after = after.to(weight.dtype)
        if not after.isfinite().all():
            raise InputError(f"{module}: the sum does not fit {weight.dtype}; choose a smaller strength")
        yield module, weight, after
        on_module(i, len(modules), module)


def changed_modules(base: BaseWeights, loras: Loras) -> list[ModuleName]:
    """The modules that the LoRAs change, sorted.

    Raises `InputError` if one does not fit, the base does not have it, or a strength is no finite number.
    """
    check_strengths(loras)
    parts = weighed(loras)
    check_loras(base.shapes(), parts)
    return sorted({module for module, _ in acting(parts)})


def apply_lora(models: Any, lora: Lora, strength: AnyStrength = 1.0) -> Applied:
    """Add a LoRA to the weights of models in memory, until `undo()` of the result is called.

    Args:
        models: a pipeline, or models by part: `{"unet": model, ...}`.
        lora: the LoRA.
        strength: s in W + s * (W' - W), where W' is the weight at full strength; this holds for DoRA too. A
            `Strength` tells U-Net, text encoders and blocks apart.

    Returns:
        An object whose `undo()` restores the original weights exactly.

    Raises:
        InputError: the base lacks a module, or one does not fit; nothing has been changed.
    """
    return apply_loras(models, [(lora, strength)])


def apply_loras(models: Any, loras: Loras, on_module: OnModule = quiet) -> Applied:
    """Add several LoRAs, each with its strength, to the weights of models in memory.

    Each is computed from the original weights, so their order does not matter. Otherwise as `apply_lora`.
    """
    base = ModelWeights(models)
    modules = changed_modules(base, loras)
    applied = Applied(base, {})
    try:
        with torch.no_grad():
            for module, weight, after in fused(base, loras, modules, on_module):
                applied._originals[module] = weight.to("cpu", copy=True)  # a GPU has no room for most weights twice
                weight.copy_(after)
    except BaseException:
        applied.undo()
        raise
    return applied


def merge_into(
    target: Any, loras: Loras, out: str | Path | None = None, on_module: OnModule = quiet, overwrite: bool = False
) -> None:
    """Add LoRAs to a base model permanently.

    Each is computed from the original weights, so their order does not matter. Words that are bundled in a LoRA's file
    are no weights: they are written beside a model on disk, in the folder OUT_words, or else named in a warning.

    Args:
        target: a pipeline or models by part, changed in place; or a model on disk (pipeline folder, single file, Hub
            id, ...; see `sd_ext.models.find_model`), of which a changed copy is written to `out`.
        loras: the LoRAs with their strengths.
        out: the new folder, or a `.safetensors` file for a single file in the original layout. It appears completely or
            not at all; dtypes are those of `target`.
        on_module: called with (modules done, all modules, the module just done).
        overwrite: replace an existing pipeline folder or file at `out`.

    Raises:
        InputError: the base lacks a module, or one does not fit, or `out` exists; nothing has been changed.
    """
    base = open_base(target)
    if not isinstance(base, StoredWeights):
        apply_loras(target, loras, on_module)
        if words := sorted({key.split(".")[1] for lora, _ in loras for key in lora.bundled}):
            log.warning("left out the bundled words, which are no weights: %s; use_lora can use them", ", ".join(words))
        return
    if out is None:
        raise InputError("a model on disk is merged into a new folder or file; say where with out")
    _merge_stored(base, loras, Path(out).expanduser(), on_module, overwrite)


def _merge_stored(base: StoredWeights, loras: Loras, out: Path, on_module: OnModule, overwrite: bool) -> None:
    check_out(base.model, out, overwrite)
    modules, done = changed_modules(base, loras), 0

    def change(stored: Stored) -> dict[tuple[str, str], Tensor]:
        """The new weights of one file's or part's modules."""
        nonlocal done
        inside = [module for module in modules if base.places[module] in stored]
        after = fused(base, loras, inside, lambda i, _, module: on_module(done + i, len(modules), module))
        made = {base.places[module]: weight for module, _, weight in after}
        done += len(inside)
        return made

    write_model(base.model, out, base.parts, change, overwrite)
    if words := merged_words(loras):
        log.warning("%s", write_words(words, out, None, "a model"))
