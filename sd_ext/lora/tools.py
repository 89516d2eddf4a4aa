"""Make LoRAs from LoRAs: merge, resize, scale. One module at a time, to save memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..errors import InputError
from ..models.original.families import families
from .adapter import Adapter, ModuleName
from .aside import Aside
from .combine import SUM, Combine
from .fuse import Loras, OnModule, quiet
from .headers import common_dtype, merged_header, merged_words
from .kinds.kind import one
from .lora import Lora
from .low_rank import Keep
from .making import Making
from .strength import AnyStrength, Weighed, acting, weighed
from .weights import BaseWeights, check_loras, check_strengths, open_base


def merge(
    loras: Loras,
    rank: int | None = None,
    energy: float | None = None,
    base: Any = None,
    on_module: OnModule = quiet,
    *,
    keep: Keep | None = None,
    how: Combine = SUM,
    plain: bool = False,
    aside: Aside | None = None,
) -> Lora:
    """Make one LoRA that has the effect of several together.

    Titles, tags and bundled words of all are kept (`headers`). Norms and biases, which a plain LoRA cannot hold, stay
    as differences.

    Args:
        loras: the LoRAs with their strengths, which may be negative: (a, 1), (b, 1), (c, -1) is a + (b - c). Modules
            whose block has weight 0 in a `Strength` are left out.
        rank, energy: how much of the sum to keep (`Keep`). With neither, plain LoRAs are merged exactly, by
            concatenating their factors, so that the ranks add up.
        base: a pipeline, models by part, or a model on disk (folder, single file, Hub id); required for DoRA, OFT and
            others whose delta depends on it.
        on_module: called with (modules done, all modules, the module just done).
        keep: all limits of what to keep, in place of `rank` and `energy`.
        how: how the changes become one; by default their sum. All but the sum and `cosine` need a limit.
        plain: leave out what a plain LoRA cannot hold, and log its share.
        aside: put what is made aside, so that it need not fit into memory.

    Returns:
        A LoRA with float32 factors and alpha = rank; `errors` has each module's relative error.

    Raises:
        InputError: LoRAs for different bases or module shapes; a strength that is no finite number; a kind whose delta
            depends on the base without `base`; or LoHa, LoKr or DoRA, or another way than a sum, without a limit,
            since these have no exact result.
    """
    loras = list(loras)
    if keep is None and (rank is not None or energy is not None):
        keep = Keep(rank, energy)
    if not loras:
        raise InputError("no LoRA given")
    check_strengths(loras)
    bases = {lora.base for lora, _ in loras if lora.base}
    if len(bases) > 1:
        titles = ", ".join(families()[name].title for name in sorted(bases))
        raise InputError(f"LoRAs for different bases: {', '.join(sorted(bases))} ({titles}); merge those for one")
    parts = weighed(loras)
    weights = _checked_base(base, parts)
    modules = sorted({module for module, _ in acting(parts)})
    if not modules:
        raise InputError("every module's block has weight 0; nothing is left")
    made, errors = {}, {}
    making = Making(keep, weights, bases.pop() if bases else None, plain, how)
    for i, module in enumerate(modules, 1):
        here = [(lora.adapters[module], its[module]) for lora, its in parts if module in its]
        if (found := making.one_of(module, here)) is not None:
            made[module], errors[module] = found if aside is None else (aside.adapter(found[0]), found[1])
        on_module(i, len(modules), module)
    making.tell()
    words, header = merged_words(loras), merged_header(loras)
    return Lora(made, header, making.base, words, errors, common_dtype([lora for lora, _ in loras]))


def _checked_base(base: Any, loras: Sequence[Weighed]) -> BaseWeights | None:
    """Open the base, if there is one, and check that the LoRAs fit it."""
    weights = None if base is None else open_base(base)
    if weights:
        check_loras(weights.shapes(), loras)
    return weights


def resize(
    lora: Lora,
    rank: int | None = None,
    energy: float | None = None,
    base: Any = None,
    on_module: OnModule = quiet,
    *,
    keep: Keep | None = None,
    plain: bool = False,
) -> Lora:
    """Reduce the rank of a LoRA, or convert any other kind to plain LoRA.

    Args:
        lora: the LoRA.
        rank: keep at most so many directions in each module.
        energy: keep only as many directions as needed for this fraction of the squared Frobenius norm; 1 loses only
            rounding.
        base: a pipeline, models by part, or a model on disk (folder, single file, Hub id); required for DoRA, OFT and
            others whose delta depends on it.
        on_module: called with (modules done, all modules, the module just done).
        keep: all limits of what to keep, in place of `rank` and `energy`.
        plain: leave out norms and biases, which a plain LoRA cannot hold, and log their share; else they stay as
            differences.

    Returns:
        A LoRA with float32 factors and alpha = rank; `errors` has each module's relative error. Modules whose rank is
        small enough already are kept unchanged.

    Raises:
        InputError: neither rank nor energy is given, or a kind whose delta depends on the base without `base`.
    """
    keep, parts = keep or Keep(rank, energy), weighed([(lora, 1.0)])
    making = Making(keep, _checked_base(base, parts), lora.base, plain)
    made, errors = {}, {}
    for i, (module, adapter) in enumerate(lora.adapters.items(), 1):
        small = adapter.plain and keep.for_weight(adapter.shape or ()).all_of(adapter.rank)
        found = making.as_it_is(adapter) if small else making.one_of(module, [(adapter, 1.0)])
        if found is not None:
            made[module], errors[module] = found
        on_module(i, len(lora), module)
    making.tell()
    return replace(lora, adapters=made, errors=errors, dtype=common_dtype([lora]))


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
        raise InputError(f"{module}: {one(adapter.rules.name)} cannot be rescaled; make it a plain LoRA (resize) first")
    return replace(adapter, tensors=tensors)
