"""Make LoRAs from LoRAs and models: merge, resize, extract. One module at a time, to save memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .adapter import Adapter, ModuleName
from .fuse import Loras, OnModule, quiet
from .lora import Lora
from .low_rank import Factors, Keep, truncate, truncate_product
from .weights import BaseWeights, check_fit, open_base, pairs


def merge(
    loras: Loras,
    rank: int | None = None,
    energy: float | None = None,
    base: Any = None,
    on_module: OnModule = quiet,
) -> Lora:
    """Make one LoRA that has the effect of several together.

    Args:
        loras: the LoRAs with their strengths, which may be negative.
        rank, energy: how much of the sum to keep (`Keep`). With neither, plain LoRAs are merged exactly, by
            concatenating their factors, so that the ranks add up.
        base: a pipeline, models by part, or a model on disk (folder, Hub id); required for DoRA, whose delta depends on
            it.
        on_module: called with (modules done, all modules, the module just done).

    Returns:
        A LoRA with float32 factors and alpha = rank; `errors` has each module's relative error.

    Raises:
        InputError: LoRAs for different bases or module shapes; DoRA without `base`; LoHa, LoKr or DoRA without a rank
            or energy, which have no exact sum.
    """
    keep = None if rank is None and energy is None else Keep(rank, energy)
    bases = {lora.base for lora, _ in loras if lora.base}
    if not loras:
        raise InputError("no LoRA given")
    if len(bases) > 1:
        raise InputError(f"LoRAs for different bases: {', '.join(sorted(bases))}")
    weights = None if base is None else open_base(base)
    if weights:
        check_fit(weights.shapes(), pairs(loras))
    modules = sorted({module for module, _ in pairs(loras)})
    made, errors = {}, {}
    for i, module in enumerate(modules, 1):
        here = [(lora.adapters[module], strength) for lora, strength in loras if module in lora.adapters]
        try:
            made[module], errors[module] = _sum(here, keep, module, weights)
        except InputError as error:
            raise InputError(f"{module}: {error}") from None
        on_module(i, len(modules), module)
    return Lora(made, {}, bases.pop() if bases else None, errors=errors)


def _sum(
    adapters: Sequence[tuple[Adapter, float]], keep: Keep | None, module: ModuleName, base: BaseWeights | None
) -> tuple[Adapter, float]:
    """Make one plain LoRA adapter of several adapters of one module. Returns it and its relative error."""
    shape = _shape_of(adapters)
    factored = [adapter.rules.two_factors(adapter.tensors) for adapter, _ in adapters]
    exact = [factors for factors in factored if factors is not None]
    if len(exact) == len(factored) and shape is not None:
        up = torch.cat([up * (s * a.scale) for (up, _), (a, s) in zip(exact, adapters, strict=True)], 1)
        down = torch.cat([down for _, down in exact])
        factors = truncate_product(up, down, keep) if keep else Factors(up, down, 0.0)
    elif keep is None:
        kinds = sorted({a.rules.name for (a, _), factors in zip(adapters, factored, strict=True) if factors is None})
        raise InputError(f"{', '.join(kinds)}: no exact sum; give a rank, or energy 1 for as many as it takes")
    else:
        weight = base.weight(module) if base else None
        total = sum(s * a.delta(weight) for a, s in adapters)
        assert isinstance(total, Tensor)
        shape = total.shape if weight is not None or shape is None else shape
        factors = truncate(total.flatten(1), keep)
    return plain_adapter(factors, shape), factors.error


def _shape_of(adapters: Sequence[tuple[Adapter, float]]) -> torch.Size | None:
    """The one weight shape that the adapters are made for; None if they all fit several."""
    shapes = {tuple(shape) for adapter, _ in adapters if (shape := adapter.shape) is not None}
    if len(shapes) > 1:
        raise InputError(f"the LoRAs are for different shapes: {', '.join(map(str, sorted(shapes)))}")
    return torch.Size(shapes.pop()) if shapes else None


def plain_adapter(factors: Factors, shape: torch.Size) -> Adapter:
    """A LoRA adapter with alpha = rank for a weight of `shape`; for a convolution, `down` is k x k and `up` 1 x 1."""
    up, down, _ = factors
    up, down = up.reshape(*up.shape, *[1] * (len(shape) - 2)), down.reshape(down.shape[0], *shape[1:])
    return Adapter("lora", {"down": down.contiguous(), "up": up.contiguous()}, float(down.shape[0]))


def resize(
    lora: Lora, rank: int | None = None, energy: float | None = None, base: Any = None, on_module: OnModule = quiet
) -> Lora:
    """Reduce the rank of a LoRA, or convert LoHa, LoKr and DoRA to plain LoRA.

    Args:
        lora: the LoRA.
        rank: keep at most so many directions in each module.
        energy: keep only as many directions as needed for this fraction of the squared Frobenius norm; 1 loses only
            rounding.
        base: a pipeline, models by part, or a model on disk (folder, Hub id); required for DoRA, whose delta depends on
            it.
        on_module: called with (modules done, all modules, the module just done).

    Returns:
        A LoRA with float32 factors and alpha = rank; `errors` has each module's relative error. Modules whose rank is
        small enough already are kept unchanged.

    Raises:
        InputError: neither rank nor energy is given, or DoRA without `base`.
    """
    keep = Keep(rank, energy)
    weights = None if base is None else open_base(base)
    if weights:
        check_fit(weights.shapes(), lora.adapters.items())
    made, errors = {}, {}
    for i, (module, adapter) in enumerate(lora.adapters.items(), 1):
        try:
            made[module], errors[module] = adapter, 0.0
            if not (adapter.plain and energy is None and adapter.rank <= (rank or 0)):
                made[module], errors[module] = _sum([(adapter, 1.0)], keep, module, weights)
        except InputError as error:
            raise InputError(f"{module}: {error}") from None
        on_module(i, len(lora), module)
    return replace(lora, adapters=made, errors=errors)


def extract(
    base: Any, tuned: Any, rank: int | None = None, energy: float | None = None, on_module: OnModule = quiet
) -> Lora:
    """Find the LoRA that turns one model into another, which was fine-tuned from it.

    Args:
        base, tuned: pipelines, models by part, or models on disk (folders, Hub ids; see `sd_ext.models.find_model`).
        rank, energy: how much to keep of each module's difference (`Keep`).
        on_module: called with (modules done, all modules, the module just done).

    Returns:
        A LoRA with float32 factors and alpha = rank for the linear layers and convolutions that differ; `errors` has
        each module's relative error. Differences that a LoRA cannot hold (biases, norms, embeddings) are ignored.

    Raises:
        InputError: the models differ in their modules or shapes, or their linear layers and convolutions are all equal.
    """
    keep, before, after = Keep(rank, energy), open_base(base), open_base(tuned)
    shapes, others = before.shapes(), after.shapes()
    common = sorted({part for part, _ in shapes} & {part for part, _ in others})
    modules = sorted(module for module in {*shapes, *others} if module.part in common)
    for module in modules:
        if shapes.get(module) != others.get(module):
            found = [tuple(s[module]) if module in s else "no such module" for s in (shapes, others)]
            raise InputError(f"{module}: {found[0]} in the base, {found[1]} in the tuned model")
    made, errors = {}, {}
    for i, module in enumerate(modules, 1):
        difference = after.weight(module).float() - before.weight(module).float()
        if not difference.isfinite().all():
            raise InputError(f"{module}: the weights are not finite")
        if difference.any():
            factors = truncate(difference.flatten(1), keep)
            made[module], errors[module] = plain_adapter(factors, difference.shape), factors.error
        on_module(i, len(modules), module)
    if not made:
        raise InputError("the two models have the same linear layers and convolutions; there is nothing to extract")
    return Lora(made, errors=errors)
