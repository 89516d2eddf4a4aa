"""Find the LoRA that leads from one model to another, which was tuned from it."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .adapter import Adapter, ModuleName
from .formats.keys import said
from .fuse import OnModule, quiet
from .lora import Lora
from .low_rank import Keep, truncate
from .making import plain_adapter
from .weights import BaseWeights, family_of, is_matrix, open_base

log = logging.getLogger(__name__)


def extract(
    base: Any,
    tuned: Any,
    rank: int | None = None,
    energy: float | None = None,
    on_module: OnModule = quiet,
    *,
    keep: Keep | None = None,
    full_rest: bool = False,
) -> Lora:
    """Find the LoRA that turns one model into another, which was fine-tuned from it.

    Layers of other shapes, such as the first of an inpainting model, are left out and named in a warning.

    Args:
        base, tuned: pipelines, models by part, or models on disk (folders, single files, Hub ids; see
            `sd_ext.models.find_model`).
        rank, energy: how much to keep of each module's difference (`Keep`).
        on_module: called with (modules done, all modules, the module just done).
        keep: all limits of what to keep, in place of `rank` and `energy`.
        full_rest: keep also what a plain LoRA cannot hold, as whole differences. Files in kohya's format can hold them.

    Returns:
        A LoRA with float32 factors and alpha = rank for the linear layers and convolutions that differ; `errors` has
        each module's relative error. What a LoRA cannot hold (biases, norms, tables of words) is left out unless
        `full_rest`; a warning names its share.

    Raises:
        InputError: the models differ in their modules, or in the shapes of most; or their linear layers and
            convolutions are all equal.
    """
    keep, before, after = keep or Keep(rank, energy), open_base(base), open_base(tuned)
    modules = _comparable(before, after)
    made, errors, rest = {}, {}, Rest(full_rest)
    for i, module in enumerate(modules, 1):
        difference = _difference(module, before, after)
        if difference.any():
            if is_matrix(module, difference.shape):
                factors = truncate(difference.flatten(1), keep.for_weight(difference.shape))
                made[module], errors[module] = plain_adapter(factors, difference.shape), factors.error
                rest.held += float(difference.double().square().sum())
            elif (adapter := rest.of(module, difference)) is not None:
                made[module], errors[module] = adapter, 0.0
        on_module(i, len(modules), module)
    if not made:
        raise InputError("the two models have the same linear layers and convolutions; there is nothing to extract")
    rest.tell()
    return Lora(made, errors=errors, base=family_of(before.shapes()))


class Rest:
    """What a plain LoRA cannot hold.

    Args:
        kept: whether it is kept as whole differences.
    """

    def __init__(self, kept: bool):
        self.kept, self.names, self.lost, self.held = kept, [], 0.0, 0.0

    def of(self, module: ModuleName, difference: Tensor) -> Adapter | None:
        """The adapter of a norm, a bias or a table; None if it is left out."""
        if self.kept:
            return Adapter("diff", {"diff": difference}, 1.0)
        self.names.append(str(module))
        self.lost += float(difference.double().square().sum())
        return None

    def tell(self) -> None:
        """Log what was left out, and its share of the change."""
        if self.names:
            log.warning(
                "left out what a LoRA cannot hold: %d norms, biases and tables that differ, %.2g of the change's "
                "squared norm (%s); keep them with --full-rest (full_rest=True), for kohya's format",
                len(self.names), self.lost / (self.lost + self.held), said(self.names),
            )  # fmt: skip


def _difference(module: ModuleName, before: BaseWeights, after: BaseWeights) -> Tensor:
    one, other = after.weight(module), before.weight(module)
    difference = one.to(torch.float32) - other.to(one.device, torch.float32)
    if not difference.isfinite().all():
        raise InputError(f"{module}: the weights are not finite")
    return difference


def _comparable(before: BaseWeights, after: BaseWeights) -> list[ModuleName]:
    """The modules that both models have in the same shape; others are named in a warning.

    Raises `InputError` if one has a module that the other lacks, or most have other shapes.
    """
    shapes, others = before.shapes(), after.shapes()
    common = {part for part, _ in shapes} & {part for part, _ in others}
    modules = sorted(module for module in {*shapes, *others} if module.part in common)
    differing = [module for module in modules if shapes.get(module) != others.get(module)]
    for module in differing:
        if module not in shapes or module not in others or 2 * len(differing) > len(modules):
            found = [tuple(s[module]) if module in s else "no such module" for s in (shapes, others)]
            raise InputError(f"{module}: {found[0]} in the base, {found[1]} in the tuned model")
    if differing:
        what = [f"{module} ({tuple(shapes[module])} and {tuple(others[module])})" for module in differing]
        log.warning("left out %d modules of other shapes in the two models: %s", len(what), said(what))
    return [module for module in modules if shapes.get(module) == others.get(module)]
