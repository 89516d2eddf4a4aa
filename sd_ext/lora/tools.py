"""Make LoRAs from LoRAs and models: merge, resize, extract. One module at a time, to save memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .adapter import Adapter, ModuleName
from .combine import SUM, Combine, combined, shared
from .fuse import Loras, OnModule, quiet
from .lora import Lora
from .low_rank import Factors, Keep, truncate, truncate_product
from .strength import AnyStrength, acting, weighed
from .weights import BaseWeights, check_fit, open_base


def merge(
    loras: Loras,
    rank: int | None = None,
    energy: float | None = None,
    base: Any = None,
    on_module: OnModule = quiet,
    *,
    keep: Keep | None = None,
    how: Combine = SUM,
) -> Lora:
    """Make one LoRA that has the effect of several together.

    Args:
        loras: the LoRAs with their strengths, which may be negative: (a, 1), (b, 1), (c, -1) is a + (b - c). Modules
            whose block has weight 0 in a `Strength` are left out.
        rank, energy: how much of the sum to keep (`Keep`). With neither, plain LoRAs are merged exactly, by
            concatenating their factors, so that the ranks add up.
        base: a pipeline, models by part, or a model on disk (folder, Hub id); required for DoRA, whose delta depends on
            it.
        on_module: called with (modules done, all modules, the module just done).
        keep: all limits of what to keep, in place of `rank` and `energy`.
        how: how the changes become one; by default their sum. All but the sum and `cosine` need a limit.

    Returns:
        A LoRA with float32 factors and alpha = rank; `errors` has each module's relative error.

    Raises:
        InputError: LoRAs for different bases or module shapes; DoRA without `base`; LoHa, LoKr or DoRA, or another way
            than a sum, without a limit, since these have no exact result.
    """
    if keep is None and (rank is not None or energy is not None):
        keep = Keep(rank, energy)
    bases = {lora.base for lora, _ in loras if lora.base}
    if not loras:
        raise InputError("no LoRA given")
    if len(bases) > 1:
        raise InputError(f"LoRAs for different bases: {', '.join(sorted(bases))}")
    weights, parts = None if base is None else open_base(base), weighed(loras)
    if weights:
        check_fit(weights.shapes(), acting(parts))
    modules = sorted({module for module, _ in acting(parts)})
    if not modules:
        raise InputError("every module's block has weight 0; nothing is left")
    made, errors = {}, {}
    for i, module in enumerate(modules, 1):
        here = [(lora.adapters[module], its[module]) for lora, its in parts if module in its]
        try:
            made[module], errors[module] = _sum(here, keep, module, weights, how)
        except InputError as error:
            raise InputError(f"{module}: {error}") from None
        on_module(i, len(modules), module)
    return Lora(made, {}, bases.pop() if bases else None, errors=errors)


def _sum(
    adapters: Sequence[tuple[Adapter, float]],
    keep: Keep | None,
    module: ModuleName,
    base: BaseWeights | None,
    how: Combine = SUM,
) -> tuple[Adapter, float]:
    """Make one plain LoRA adapter of several adapters of one module. Returns it and its relative error."""
    shape, strengths = _shape_of(adapters), [strength for _, strength in adapters]
    factored = [adapter.rules.two_factors(adapter.tensors) for adapter, _ in adapters]
    exact = [(up * a.scale, down) for factors, (a, _) in zip(factored, adapters, strict=True) if factors
             for up, down in [factors]]  # fmt: skip
    if how.exact and len(exact) == len(factored) and shape is not None:
        if how.method == "cosine":
            strengths = shared(_inner_of_factors(exact), strengths)
        up = torch.cat([up * strength for (up, _), strength in zip(exact, strengths, strict=True)], 1)
        down = torch.cat([down for _, down in exact])
        factors = truncate_product(up, down, keep.for_weight(shape)) if keep else Factors(up, down, 0.0)
        return plain_adapter(factors, shape), factors.error
    if keep is None:
        kinds = sorted({a.rules.name for (a, _), factors in zip(adapters, factored, strict=True) if factors is None})
        what = ", ".join(kinds if how.exact else [how.method])
        raise InputError(f"{what}: no exact sum; give a rank, or energy 1 for as many as it takes")
    weight = base.weight(module) if base else None
    changes = [adapter.delta(weight) for adapter, _ in adapters]
    if how.method == "cosine":
        flat = torch.stack([change.flatten() for change in changes]).double()
        strengths = shared(flat @ flat.T, strengths)
    if how.exact:
        total = torch.stack([s * change for change, s in zip(changes, strengths, strict=True)]).sum(0)
    else:
        total = combined(changes, strengths, how, str(module))
    shape = total.shape if weight is not None or shape is None else shape
    factors = truncate(total.flatten(1), keep.for_weight(shape))
    return plain_adapter(factors, shape), factors.error


def _inner_of_factors(exact: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The inner products of matrices given as (up, down), without building these."""
    return torch.tensor(
        [[float(((a.T @ c).double() * (b @ d.T).double()).sum()) for c, d in exact] for a, b in exact],
        dtype=torch.float64,
    )


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
    lora: Lora,
    rank: int | None = None,
    energy: float | None = None,
    base: Any = None,
    on_module: OnModule = quiet,
    *,
    keep: Keep | None = None,
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
        keep: all limits of what to keep, in place of `rank` and `energy`.

    Returns:
        A LoRA with float32 factors and alpha = rank; `errors` has each module's relative error. Modules whose rank is
        small enough already are kept unchanged.

    Raises:
        InputError: neither rank nor energy is given, or DoRA without `base`.
    """
    keep = keep or Keep(rank, energy)
    weights = None if base is None else open_base(base)
    if weights:
        check_fit(weights.shapes(), lora.adapters.items())
    made, errors = {}, {}
    for i, (module, adapter) in enumerate(lora.adapters.items(), 1):
        try:
            made[module], errors[module] = adapter, 0.0
            if not (adapter.plain and keep.for_weight(adapter.shape or ()).all_of(adapter.rank)):
                made[module], errors[module] = _sum([(adapter, 1.0)], keep, module, weights)
        except InputError as error:
            raise InputError(f"{module}: {error}") from None
        on_module(i, len(lora), module)
    return replace(lora, adapters=made, errors=errors)


def extract(
    base: Any,
    tuned: Any,
    rank: int | None = None,
    energy: float | None = None,
    on_module: OnModule = quiet,
    *,
    keep: Keep | None = None,
) -> Lora:
    """Find the LoRA that turns one model into another, which was fine-tuned from it.

    Args:
        base, tuned: pipelines, models by part, or models on disk (folders, Hub ids; see `sd_ext.models.find_model`).
        rank, energy: how much to keep of each module's difference (`Keep`).
        on_module: called with (modules done, all modules, the module just done).
        keep: all limits of what to keep, in place of `rank` and `energy`.

    Returns:
        A LoRA with float32 factors and alpha = rank for the linear layers and convolutions that differ; `errors` has
        each module's relative error. Differences that a LoRA cannot hold (biases, norms, embeddings) are ignored.

    Raises:
        InputError: the models differ in their modules or shapes, or their linear layers and convolutions are all equal.
    """
    keep, before, after = keep or Keep(rank, energy), open_base(base), open_base(tuned)
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
            factors = truncate(difference.flatten(1), keep.for_weight(difference.shape))
            made[module], errors[module] = plain_adapter(factors, difference.shape), factors.error
        on_module(i, len(modules), module)
    if not made:
        raise InputError("the two models have the same linear layers and convolutions; there is nothing to extract")
    return Lora(made, errors=errors)


def at_strength(lora: Lora, strength: AnyStrength) -> Lora:
    """Make a LoRA that does at strength 1 what another does at `strength`.

    Args:
        lora: the LoRA.
        strength: how strongly it is to act. Modules whose block has weight 0 are left out.

    Returns:
        Modules of strength 1 are those of `lora`; others' tensors are rescaled, in the same dtype.

    Raises:
        InputError: no module is left, or one is of a kind that cannot be rescaled, such as DoRA.
    """
    ((_, strengths),) = weighed([(lora, strength)])
    if not strengths:
        raise InputError("every module's block has weight 0; nothing is left")
    made = {module: _rescaled(module, lora.adapters[module], factor) for module, factor in strengths.items()}
    return replace(lora, adapters=made, errors={module: e for module, e in lora.errors.items() if module in made})


def _rescaled(module: ModuleName, adapter: Adapter, factor: float) -> Adapter:
    if factor == 1:
        return adapter
    tensors = None if adapter.rules.beside else adapter.rules.stronger(adapter.tensors, factor)
    if tensors is None:
        raise InputError(f"{module}: a {adapter.rules.name} cannot be rescaled; make it a plain LoRA (resize) first")
    return replace(adapter, tensors=tensors)
