"""Make one adapter of several of one module, in whatever form it can have."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from torch import Size, Tensor

from ..errors import InputError
from .adapter import Adapter, ModuleName
from .combine import SUM, Combine, combined, shared
from .formats.bases import wrong_shape
from .formats.keys import said
from .low_rank import Factors, Keep, truncate, truncate_product
from .weights import BaseWeights, is_matrix

log = logging.getLogger(__name__)
Made = tuple[Adapter, float]  # an adapter, and its relative error
Here = Sequence[tuple[Adapter, float]]  # adapters of one module, each with its strength


class Making:
    """Make one adapter of several of one module.

    Args:
        keep: how much of the result to keep; None for exact ones only.
        weights: the base's weights, if they are known.
        base: the family.
        plain: leave out what a plain LoRA cannot hold.
        how: how several changes become one.
    """

    def __init__(
        self, keep: Keep | None, weights: BaseWeights | None, base: str | None, plain: bool, how: Combine = SUM
    ):
        self.keep, self.weights, self.base, self.plain, self.how = keep, weights, base, plain, how
        self.left_out: dict[ModuleName, float] = {}
        self.held = 0.0  # squared norm of what is kept

    def one_of(self, module: ModuleName, adapters: Here) -> Made | None:
        """One adapter of several, each with its strength, and its relative error; None if it is left out.

        Raises:
            InputError: their shapes differ, they have no exact result, or the base's weight is needed; names the
                module.
        """
        try:
            shape = self._shape(module, adapters)
            if module.path.endswith(".bias") or (shape is not None and not is_matrix(module, shape)):
                return self._whole(module, adapters)
            return self._counted(self._factored(module, adapters, shape))
        except InputError as error:
            raise InputError(f"{module}: {error}") from None

    def as_it_is(self, adapter: Adapter) -> Made:
        """An adapter that is small enough already."""
        return self._counted((adapter, 0.0))

    def _counted(self, made: Made) -> Made:
        if self.plain and made[0].plain:
            self.held += float(made[0].product().double().square().sum())
        return made

    def _total(self, module: ModuleName, adapters: Here) -> Tensor:
        """The changes of all, as one."""
        weight, strengths = self.weights.weight(module) if self.weights else None, [s for _, s in adapters]
        shape = self._shape(module, adapters)
        changes = [adapter.delta(weight) for adapter, _ in adapters]
        if shape is not None:  # a kernel may be flat in one, and a linear layer a 1 x 1 convolution
            changes = [change.reshape(shape) for change in changes]
        if not self.how.exact:
            return combined(changes, strengths, self.how, str(module))
        if self.how.method == "cosine":
            flat = torch.stack([change.flatten() for change in changes]).double()
            strengths = shared(flat @ flat.T, strengths)
        return torch.stack([s * change for change, s in zip(changes, strengths, strict=True)]).sum(0)

    def _whole(self, module: ModuleName, adapters: Here) -> Made | None:
        """The result as it is: of a norm, a bias or a table, which has no low-rank form."""
        total = self._total(module, adapters)
        if self.plain:
            self.left_out[module] = float(total.double().square().sum())
            return None
        return Adapter("diff", {"diff": total}, 1.0), 0.0

    def _factored(self, module: ModuleName, adapters: Here, shape: Size | None) -> Made:
        factored = [adapter.rules.two_factors(adapter.tensors) for adapter, _ in adapters]
        exact = [
            (factors[0] * a.scale, factors[1]) for factors, (a, _) in zip(factored, adapters, strict=True) if factors
        ]
        if self.how.exact and len(exact) == len(factored) and shape is not None:
            return self._of_factors(exact, [strength for _, strength in adapters], shape)
        if self.keep is None:
            if {adapter.kind for adapter, _ in adapters} == {"diff"} and not self.plain and self.how.exact:
                return Adapter("diff", {"diff": self._total(module, adapters)}, 1.0), 0.0
            kinds = sorted({a.rules.name for (a, _), known in zip(adapters, factored, strict=True) if known is None})
            what = ", ".join(kinds if self.how.exact else [self.how.method])
            raise InputError(f"{what}: no exact sum; give a rank, or energy 1 for as many as it takes")
        total = self._total(module, adapters)
        shape = total.shape if self.weights or shape is None else shape
        factors = truncate(total.flatten(1), self.keep.for_weight(shape))
        return plain_adapter(factors, shape), factors.error

    def _of_factors(self, exact: Sequence[tuple[Tensor, Tensor]], strengths: list[float], shape: Size) -> Made:
        if self.how.method == "cosine":
            strengths = shared(_inner_of_factors(exact), strengths)
        up = torch.cat([up * strength for (up, _), strength in zip(exact, strengths, strict=True)], 1)
        down = torch.cat([down for _, down in exact])
        factors = truncate_product(up, down, self.keep.for_weight(shape)) if self.keep else Factors(up, down, 0.0)
        return plain_adapter(factors, shape), factors.error

    def _shape(self, module: ModuleName, adapters: Here) -> Size | None:
        """The one weight shape that the adapters are made for; None if they all fit several.

        A linear layer and a 1 x 1 convolution fit each other: the base's shape, or else the family's, is taken.
        """
        if self.weights:
            return self.weights.shapes()[module]
        shapes = {tuple(shape): adapter for adapter, _ in adapters if (shape := adapter.shape) is not None}
        if len(shapes) > 1 and len({_without_ones(shape) for shape in shapes}) > 1:
            raise InputError(f"the LoRAs are for different shapes: {', '.join(map(str, sorted(shapes)))}")
        right = [shape for shape, adapter in shapes.items() if not wrong_shape(module, adapter, self.base)]
        return Size(min(right or shapes, key=len)) if shapes else None

    def tell(self) -> None:
        """Log what was left out."""
        if self.left_out:
            lost = sum(self.left_out.values())
            share = lost / (lost + self.held) if lost + self.held else 0.0
            log.warning(
                "left out %d norms and biases, which a plain LoRA cannot hold (%.2g of the squared change): %s",
                len(self.left_out), share, said(map(str, self.left_out)),
            )  # fmt: skip


def _inner_of_factors(exact: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """The inner products of matrices given as (up, down), without building these."""
    return torch.tensor(
        [[float(((a.T @ c).double() * (b @ d.T).double()).sum()) for c, d in exact] for a, b in exact],
        dtype=torch.float64,
    )


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape[:2] if all(side == 1 for side in shape[2:]) else shape


def plain_adapter(factors: Factors, shape: torch.Size) -> Adapter:
    """A LoRA adapter with alpha = rank for a weight of `shape`; for a convolution, `down` is k x k and `up` 1 x 1."""
    up, down, _ = factors
    up, down = up.reshape(*up.shape, *[1] * (len(shape) - 2)), down.reshape(down.shape[0], *shape[1:])
    return Adapter("lora", {"down": down.contiguous(), "up": up.contiguous()}, float(down.shape[0]))
